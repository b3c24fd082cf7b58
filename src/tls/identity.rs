//! The relay's certificate and key.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use thiserror::Error;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, InconsistentKeys, ServerConfig};

use super::validity::validity;
use crate::metrics::lines::rfc3339;
use crate::trust::{PemFileError, certificates, provider, read_pem};

/// The relay's identity towards clients. Two are equal if certificates and key are.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    config: Arc<ServerConfig>,
    certificate: PathBuf,
    key_exposed: Option<String>,
    validity: Option<(SystemTime, SystemTime)>,
}

/// The file with the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PemFile {
    /// `tls_certificate`.
    Certificate,
    /// `tls_key`.
    Key,
}

/// Why a certificate and its key cannot be used, and how to fix it. Contains nothing of the key.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// One of the files cannot be read.
    #[error("{1}")]
    File(PemFile, #[source] PemFileError),
    /// The first file contains no certificate.
    #[error("{} holds no certificate; write the path of a PEM file (-----BEGIN CERTIFICATE-----) with the relay's own certificate first", .0.display())]
    NoCertificate(PathBuf),
    /// The second file contains no private key.
    #[error("{} holds no private key; write the path of a PEM file (-----BEGIN PRIVATE KEY-----)", .0.display())]
    NoKey(PathBuf),
    /// The key is encrypted.
    #[error(
        "the key in {path} is encrypted, and the relay cannot ask for its password; decrypt it (openssl pkey -in {path} -out …) and \
         let only the relay read it",
        path = .0.display()
    )]
    EncryptedKey(PathBuf),
    /// The key belongs to another certificate.
    #[error(
        "{} is not the key of the first certificate in {}; `openssl pkey -in KEY -pubout` and `openssl x509 -in CERTIFICATE -noout \
         -pubkey` print the same for a pair",
        key.display(),
        certificate.display()
    )]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The TLS library rejects the certificate.
    #[error("the first certificate in {} cannot be used ({error:?}); have it reissued", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// The error.
        error: rustls::CertificateError,
    },
    /// The TLS library rejects the key.
    #[error("the key in {} cannot be used ({error}); use ECDSA (P-256, P-384), Ed25519 or RSA from 2048 bits", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The error.
        error: rustls::Error,
    },
}

impl IdentityError {
    /// The file with the error.
    pub fn part(&self) -> PemFile {
        match self {
            IdentityError::File(part, _) => *part,
            IdentityError::NoCertificate(_) | IdentityError::BadCertificate { .. } => PemFile::Certificate,
            _ => PemFile::Key,
        }
    }
}

impl Identity {
    /// Reads both PEM files: the relay's certificate with its chain, and its unencrypted key.
    ///
    /// # Errors
    /// What is wrong, and with which file.
    pub fn load(certificate: &Path, key: &Path) -> Result<Identity, IdentityError> {
        let chain = certificates(certificate).map_err(|error| IdentityError::File(PemFile::Certificate, error))?;
        if chain.is_empty() {
            return Err(IdentityError::NoCertificate(certificate.to_owned()));
        }
        let (found, key_exposed) = read_pem(key, |pem| match PrivateKeyDer::from_pem_slice(pem) {
            Ok(found) => Ok(Ok(found)),
            Err(PemError::NoItemsFound) if is_encrypted(pem) => Ok(Err(IdentityError::EncryptedKey(key.to_owned()))),
            Err(PemError::NoItemsFound) => Ok(Err(IdentityError::NoKey(key.to_owned()))),
            Err(error) => Err(error),
        })
        .map_err(|error| IdentityError::File(PemFile::Key, error))?;
        let secret = found?;
        let config = config(chain.clone(), secret.clone_key()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                IdentityError::Mismatch { key: key.to_owned(), certificate: certificate.to_owned() }
            }
            rustls::Error::InvalidCertificate(error) => {
                IdentityError::BadCertificate { path: certificate.to_owned(), error }
            }
            error => IdentityError::BadKey { path: key.to_owned(), error },
        })?;
        let validity = validity(&chain[0]);
        Ok(Identity { chain, key: secret, config, certificate: certificate.to_owned(), key_exposed, validity })
    }

    /// The configuration for handshakes.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The last time at which the certificate is valid, if that can be parsed.
    pub fn expires(&self) -> Option<SystemTime> {
        Some(self.validity?.1)
    }

    /// A warning if every user of the machine can read the key's file.
    pub fn key_exposed(&self) -> Option<&str> {
        self.key_exposed.as_deref()
    }

    /// A warning about a certificate that can be used, but that clients would refuse, with the fix.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let (first, last) = self.validity?;
        let file = self.certificate.display();
        if now < first {
            return Some(format!(
                "the certificate in {file} is not valid before {}, and clients that check it refuse it; check the clock",
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
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

fn is_encrypted(pem: &[u8]) -> bool {
    String::from_utf8_lossy(pem).contains("ENCRYPTED")
}
