//! `listen_tls`, `tls_certificate` and `tls_key`: RTSPS for clients, and the certificate for HTTPS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::read::{Faults, Field};
use super::{addresses, value};
use crate::tls::{Identity, PemFile};

/// Settings for RTSPS.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsConfig {
    /// Addresses to serve RTSPS on; empty if only HTTPS is served.
    pub listen: Vec<SocketAddr>,
    /// The certificate and key, as read when the configuration was read.
    pub identity: Identity,
}

const CERTIFICATE: &str = "tls_certificate";
const KEY: &str = "tls_key";

/// Reads the three keys, and the files that they name. `https` is `http_tls`, which also needs a certificate.
pub(super) fn tls<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    listen: &[SocketAddr],
    https: Option<&Field<'d, 'i>>,
    faults: &mut Faults<'_>,
) -> Option<TlsConfig> {
    let (rtsps, certificate, key) = (get("listen_tls"), get(CERTIFICATE), get(KEY));
    let Some(at) = rtsps.as_ref().or(https) else {
        for field in [certificate, key].into_iter().flatten() {
            field.fault(
                faults,
                "has no effect without listen_tls or http_tls; add listen_tls = [\"0.0.0.0:8322\"], or remove the key",
            );
        }
        return None;
    };
    let addresses = match &rtsps {
        Some(rtsps) => addresses(rtsps, "0.0.0.0:8322", value::listen_tls, faults),
        None => Some(Vec::new()),
    };
    for address in addresses.iter().flatten() {
        if let Some(plain) = listen.iter().find(|plain| value::clash(**plain, *address)) {
            at.fault(
                faults,
                format!("{plain} is for RTSP without TLS, so {address} cannot be used as well; write another port"),
            );
        }
    }
    let (Some(certificate), Some(key)) = (&certificate, &key) else {
        let missing = if certificate.is_none() { CERTIFICATE } else { KEY };
        at.fault(
            faults,
            format!(
                "TLS needs a certificate and its key; add {missing} with the path of a PEM file, or remove {}",
                if rtsps.is_some() { "listen_tls" } else { "http_tls" }
            ),
        );
        return None;
    };
    let wanted = "the path of a PEM file in quotes";
    let path = |field: &Field<'_, '_>, faults: &mut Faults<'_>| field.string(faults, wanted).map(file);
    let (certificate_file, key_file) = (path(certificate, faults), path(key, faults));
    let ((certificate_file, _), (key_file, credential)) = (certificate_file?, key_file?);
    faults.reads(&certificate_file);
    faults.reads(&key_file);
    match Identity::load(&certificate_file, &key_file) {
        Ok(identity) => {
            // The service manager protects its credentials itself.
            if let Some(warning) = identity.key_exposed().filter(|_| !credential) {
                faults.warn(key, warning);
            }
            if let Some(warning) = identity.warning(SystemTime::now()) {
                faults.warn(certificate, warning);
            }
            Some(TlsConfig { listen: addresses?, identity })
        }
        Err(error) => {
            let field = if error.part() == PemFile::Certificate { certificate } else { key };
            field.fault(faults, error.to_string());
            None
        }
    }
}

/// A file by its path, or by the name of a systemd credential (systemd.exec(5), `LoadCredential=`), and whether it is a credential.
fn file(text: &str) -> (PathBuf, bool) {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|directory| Path::new(&directory).join(text));
    // A path is used as it is, whether absolute or not.
    let credential = credential.filter(|path| !text.contains('/') && path.exists());
    credential.map_or_else(|| (text.into(), false), |path| (path, true))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::{config, refused};
    use super::*;
    use crate::limits::PEM_BYTES_MAX;

    /// A certificate, its key, and paths for others, in a temporary directory.
    fn files() -> (PathBuf, PathBuf, PathBuf) {
        let name = format!("rtsprelay-test-{}-{}", std::process::id(), fastrand::u32(..));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| directory.join(name));
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key, directory)
    }

    fn text(certificate: &Path, key: &Path) -> String {
        let (certificate, key) = (certificate.display(), key.display());
        format!("listen_tls = \"127.0.0.1:1\"\ntls_certificate = \"{certificate}\"\ntls_key = \"{key}\"\n")
    }

    #[test]
    fn a_key_that_all_can_read_is_warned_of() {
        let (certificate, key, directory) = files();
        for (mode, warned) in [(0o644, true), (0o640, false)] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            let config = config(&text(&certificate, &key));
            assert!(config.tls.is_some());
            let about_key = |fault: &super::super::Fault| fault.line == Some(3) && fault.message.contains("chmod 640");
            assert_eq!(config.warnings.iter().any(about_key), warned, "{:?}", config.warnings);
            assert_eq!(config.warnings.len(), usize::from(warned), "everybody may read the certificate");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_no_file_of_a_key_is_refused_at_once() {
        let (certificate, key, directory) = files();
        let [pipe, large] = ["pipe", "large"].map(|name| directory.join(name));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(&large, vec![b'\n'; PEM_BYTES_MAX + 1]).unwrap();
        for (certificate, key, line, said) in [
            (&certificate, &pipe, 3, "not a file"),
            (&pipe, &key, 2, "not a file"),
            (&certificate, &large, 3, "too large"),
            (&large, &key, 2, "too large"),
        ] {
            refused(&text(certificate, key), line, &["cannot be read", said]);
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
