//! The certificate that the relay shows, and its key.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, InconsistentKeys, ServerConfig};

use super::validity::validity;
use crate::file;
use crate::limits::PEM_BYTES_MAX;
use crate::metrics::lines::rfc3339;

/// What the relay proves to clients who it is with. Two are equal if certificates and key are.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    config: Arc<ServerConfig>,
    certificate: PathBuf,
    key_exposed: Option<String>,
    validity: Option<(SystemTime, SystemTime)>,
}

/// The file that a fault is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `tls_certificate`.
    Certificate,
    /// `tls_key`.
    Key,
}

impl Identity {
    /// Reads both PEM files: the relay's certificate with those that lead to an authority, and its key, not encrypted.
    ///
    /// # Errors
    /// The file that is at fault, and a sentence with the cure. It holds nothing of the key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Identity, (Part, String)> {
        let chain = read(certificate, |pem| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>());
        let chain = chain.map_err(|message| (Part::Certificate, message))?;
        if chain.is_empty() {
            let message = format!(
                "{} holds no certificate; write the path of a PEM file (-----BEGIN CERTIFICATE-----) with the relay's own first",
                certificate.display()
            );
            return Err((Part::Certificate, message));
        }
        let mut key_exposed = None;
        let found = read_noting(key, &mut key_exposed, |pem| match PrivateKeyDer::from_pem_slice(pem) {
            Ok(found) => Ok(Ok(found)),
            Err(PemError::NoItemsFound) => Ok(Err(is_encrypted(pem))),
            Err(error) => Err(error),
        });
        let secret = match found.map_err(|message| (Part::Key, message))? {
            Ok(secret) => secret,
            Err(true) => {
                let message = format!(
                    "the key in {0} is encrypted, and nobody is there to type its password; decrypt it (openssl pkey -in {0} -out …) \
                     and let only the relay read it",
                    key.display()
                );
                return Err((Part::Key, message));
            }
            Err(false) => {
                let message = format!(
                    "{} holds no private key; write the path of a PEM file (-----BEGIN PRIVATE KEY-----)",
                    key.display()
                );
                return Err((Part::Key, message));
            }
        };
        let config = config(chain.clone(), secret.clone_key()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => (
                Part::Key,
                format!(
                    "{} is not the key of the first certificate in {}; `openssl pkey -in KEY -pubout` and `openssl x509 -in \
                     CERTIFICATE -noout -pubkey` print the same for a pair",
                    key.display(),
                    certificate.display()
                ),
            ),
            rustls::Error::InvalidCertificate(error) => (
                Part::Certificate,
                format!(
                    "the first certificate in {} cannot be used ({error:?}); have it issued again",
                    certificate.display()
                ),
            ),
            error => (
                Part::Key,
                format!(
                    "the key in {} cannot be used ({error}); use ECDSA (P-256, P-384), Ed25519 or RSA from 2048 bits",
                    key.display()
                ),
            ),
        })?;
        let validity = validity(&chain[0]);
        Ok(Identity { chain, key: secret, config, certificate: certificate.to_owned(), key_exposed, validity })
    }

    /// What handshakes are done with.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The last moment at which the certificate is valid, if that can be read from it.
    pub fn expires(&self) -> Option<SystemTime> {
        Some(self.validity?.1)
    }

    /// What to say of the key's file, if every user of the machine may read it.
    pub fn key_exposed(&self) -> Option<&str> {
        self.key_exposed.as_deref()
    }

    /// What is wrong with the certificate although it can be used, with the cure: clients that check it refuse it.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let (first, last) = self.validity?;
        let file = self.certificate.display();
        if now < first {
            return Some(format!(
                "the certificate in {file} is not valid before {}, and clients that check it refuse it; see to the clock",
                rfc3339(first)
            ));
        }
        (now > last).then(|| {
            format!(
                "the certificate in {file} expired at {}, and clients that check it refuse it; renew it, then reload (SIGHUP)",
                rfc3339(last)
            )
        })
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Identity {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            config: Arc::clone(&self.config),
            certificate: self.certificate.clone(),
            key_exposed: self.key_exposed.clone(),
            validity: self.validity,
        }
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key == other.key
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let config = ServerConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// The certificates in a PEM file.
///
/// # Errors
/// A sentence with the cure.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    read(path, |pem| CertificateDer::pem_slice_iter(pem).collect())
}

fn read<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, PemError>) -> Result<T, String> {
    read_noting(path, &mut None, parse)
}

/// Reads a PEM file, noting what to say if every user of the machine may read it.
fn read_noting<T>(
    path: &Path,
    exposed: &mut Option<String>,
    parse: impl FnOnce(&[u8]) -> Result<T, PemError>,
) -> Result<T, String> {
    let contents = file::read(path, PEM_BYTES_MAX).and_then(|contents| match contents.bytes.len() {
        0..=PEM_BYTES_MAX => Ok(contents),
        _ => Err(std::io::Error::other("it is too large")),
    });
    let contents = contents.map_err(|error| {
        let cure = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "let the user that runs rtsprelay read it, or pass it on as a systemd credential (LoadCredential=)"
            }
            std::io::ErrorKind::NotFound => "write the path of a PEM file",
            _ => "see that it is a readable PEM file",
        };
        format!("{} cannot be read ({error}); {cure}", path.display())
    })?;
    *exposed = contents.exposed.then(|| file::exposed_of_relay(path.display()));
    parse(&contents.bytes)
        .map_err(|error| format!("{} is no PEM file ({error}); have it written again", path.display()))
}

fn is_encrypted(pem: &[u8]) -> bool {
    String::from_utf8_lossy(pem).contains("ENCRYPTED")
}
