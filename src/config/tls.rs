//! `listen_tls`, `tls_certificate` and `tls_key`: RTSPS for clients.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::read::{Faults, Field};
use super::{addresses, value};
use crate::tls::{Identity, Part};

/// What RTSPS is served with.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsConfig {
    /// Addresses that it is served at; never empty.
    pub listen: Vec<SocketAddr>,
    /// The certificate and its key, as they were in their files when the configuration was read.
    pub identity: Identity,
}

const CERTIFICATE: &str = "tls_certificate";
const KEY: &str = "tls_key";

/// Reads the three keys, and the files that they name.
pub(super) fn tls<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    listen: &[SocketAddr],
    faults: &mut Faults<'_>,
) -> Option<TlsConfig> {
    let (at, certificate, key) = (get("listen_tls"), get(CERTIFICATE), get(KEY));
    let Some(at) = at else {
        for field in [certificate, key].into_iter().flatten() {
            field.fault(
                faults,
                "says nothing without listen_tls; add listen_tls = [\"0.0.0.0:8322\"], or remove the key",
            );
        }
        return None;
    };
    let addresses = addresses(&at, faults);
    for address in addresses.iter().flatten() {
        if let Some(plain) = listen.iter().find(|plain| value::clash(**plain, *address)) {
            at.fault(
                faults,
                format!("{plain} is for RTSP without TLS, so {address} cannot be had beside it; write another port"),
            );
        }
    }
    let (Some(certificate), Some(key)) = (&certificate, &key) else {
        let missing = if certificate.is_none() { CERTIFICATE } else { KEY };
        at.fault(
            faults,
            format!(
                "TLS needs a certificate and its key; add {missing} with the path of a PEM file, or remove listen_tls"
            ),
        );
        return None;
    };
    let wanted = "the path of a PEM file in quotes";
    let path = |field: &Field<'_, '_>, faults: &mut Faults<'_>| field.string(faults, wanted).map(file);
    let (certificate_file, key_file) = (path(certificate, faults), path(key, faults));
    match Identity::load(&certificate_file?, &key_file?) {
        Ok(identity) => {
            if let Some(warning) = identity.warning(SystemTime::now()) {
                faults.warn(certificate, warning);
            }
            Some(TlsConfig { listen: addresses?, identity })
        }
        Err((part, message)) => {
            let field = if part == Part::Certificate { certificate } else { key };
            field.fault(faults, message);
            None
        }
    }
}

/// A file by its path, or by the name of a credential that the service manager passes on (systemd.exec(5), `LoadCredential=`).
fn file(text: &str) -> PathBuf {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|directory| Path::new(&directory).join(text));
    // A path leads to itself, absolute or not.
    credential.filter(|path| !text.contains('/') && path.exists()).unwrap_or_else(|| text.into())
}
