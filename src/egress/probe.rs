//! Checks whether io_uring can be used here; if not, says why and what to do about it.

use std::{fs, io};

use io_uring::{IoUring, Probe, opcode};

/// Why io_uring cannot be used, as text for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("io_uring {cause}; {cure}")]
pub struct IoUringUnavailable {
    /// The obstacle.
    pub cause: String,
    /// How to fix it.
    pub cure: String,
}

const OR_EPOLL: &str = "or set io = \"epoll\"";

/// Creates a small ring with the relay's flags, and checks that it supports the operations that the relay uses.
///
/// # Errors
/// [`IoUringUnavailable`] with the cause and the fix.
pub fn probe() -> Result<(), IoUringUnavailable> {
    let ring = IoUring::new(8).map_err(|error| explain(&error, switched_off()))?;
    let mut operations = Probe::new();
    ring.submitter().register_probe(&mut operations).map_err(|error| IoUringUnavailable {
        cause: format!("cannot list its operations ({error})"),
        cure: format!("use Linux 5.19 or later, {OR_EPOLL}"),
    })?;
    let needed = [
        ("SEND", opcode::Send::CODE),
        ("SENDMSG", opcode::SendMsg::CODE),
        ("RECVMSG", opcode::RecvMsg::CODE),
        ("READ", opcode::Read::CODE),
        ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ];
    for (name, code) in needed {
        if !operations.is_supported(code) {
            return Err(IoUringUnavailable {
                cause: format!("lacks the operation {name}"),
                cure: format!("use Linux 5.19 or later, {OR_EPOLL}"),
            });
        }
    }
    // Without these, a completion could be lost (NODROP) and a blocked send would occupy a kernel thread (FAST_POLL).
    if !ring.params().is_feature_nodrop() || !ring.params().is_feature_fast_poll() {
        return Err(IoUringUnavailable {
            cause: "is too old here (no IORING_FEAT_NODROP or no IORING_FEAT_FAST_POLL)".into(),
            cure: format!("use Linux 5.19 or later, {OR_EPOLL}"),
        });
    }
    Ok(())
}

/// The value of `kernel.io_uring_disabled` (Linux 6.6): 0 enabled, 1 only for processes with CAP_SYS_ADMIN or in
/// `kernel.io_uring_group`, 2 disabled.
fn switched_off() -> Option<u8> {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Describes the error with which a ring could not be created, as an error of the same kind.
pub(super) fn explained(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), explain(&error, switched_off()))
}

fn explain(error: &io::Error, disabled: Option<u8>) -> IoUringUnavailable {
    let (cause, cure) = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM | libc::EACCES), Some(value @ 1..)) => (
            format!("is disabled (kernel.io_uring_disabled={value})"),
            format!("run `sysctl kernel.io_uring_disabled=0` {OR_EPOLL}"),
        ),
        (Some(libc::EPERM | libc::EACCES), _) => (
            "is forbidden to this process, probably by a container's or service manager's seccomp filter (EPERM)"
                .into(),
            format!("allow the system calls io_uring_setup, io_uring_enter and io_uring_register, {OR_EPOLL}"),
        ),
        (Some(libc::ENOSYS), _) => (
            "is unknown here: an old kernel, or a seccomp filter (ENOSYS)".into(),
            format!("use Linux 5.19 or later and allow the system call io_uring_setup, {OR_EPOLL}"),
        ),
        (Some(libc::ENOMEM), _) => (
            "cannot lock memory (RLIMIT_MEMLOCK, ENOMEM)".into(),
            format!("raise `ulimit -l` (LimitMEMLOCK= in a unit) to 64 MiB {OR_EPOLL}"),
        ),
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            (format!("cannot get a file descriptor ({error})"), "raise `ulimit -n` (LimitNOFILE= in a unit)".into())
        }
        _ => (format!("cannot be set up ({error})"), format!("see io_uring_setup(2) {OR_EPOLL}")),
    };
    IoUringUnavailable { cause, cure }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(errno: i32, disabled: Option<u8>) -> String {
        explain(&io::Error::from_raw_os_error(errno), disabled).to_string()
    }

    #[test]
    fn every_refusal_names_cause_and_cure() {
        assert_eq!(
            told(libc::EPERM, Some(2)),
            "io_uring is disabled (kernel.io_uring_disabled=2); run `sysctl kernel.io_uring_disabled=0` or set io = \"epoll\""
        );
        assert!(told(libc::EPERM, Some(0)).contains("seccomp"));
        assert!(told(libc::EPERM, None).contains("seccomp"));
        assert!(told(libc::ENOSYS, None).contains("ENOSYS"));
        assert!(told(libc::ENOMEM, Some(0)).contains("RLIMIT_MEMLOCK"));
        assert!(told(libc::EMFILE, Some(0)).contains("ulimit -n"));
        for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM, libc::EINVAL] {
            assert!(told(errno, None).contains("io = \"epoll\""), "{}", told(errno, None));
        }
    }
}
