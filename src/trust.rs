//! Shared by TLS towards clients and cameras: the crypto provider, certificates in PEM files, and verification of servers by their
//! certificate alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use thiserror::Error;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, DigitallySignedStruct, SignatureScheme};

use crate::file;
use crate::limits::PEM_BYTES_MAX;

/// The crypto provider for all TLS of the relay, towards clients and cameras.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Why a PEM file cannot be read, and how to fix it.
#[derive(Debug, Error)]
pub enum PemFileError {
    /// The file cannot be read.
    #[error("{} cannot be read ({error}); {}", path.display(), cure(error))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is not in PEM.
    #[error("{} is not a valid PEM file ({error}); create it again", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// The error.
        error: PemError,
    },
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "let the user that runs rtsprelay read it, or pass it as a systemd credential (LoadCredential=)"
        }
        io::ErrorKind::NotFound => "write the path of a PEM file",
        _ => "check that it is a readable PEM file",
    }
}

/// The certificates in a PEM file.
///
/// # Errors
/// What is wrong with the file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemFileError> {
    read_pem(path, |pem| CertificateDer::pem_slice_iter(pem).collect()).map(|(found, _)| found)
}

/// Reads a PEM file. Also returns a warning if every user of the machine can read it.
pub(crate) fn read_pem<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, PemError>,
) -> Result<(T, Option<String>), PemFileError> {
    let contents = file::read(path, PEM_BYTES_MAX).and_then(|contents| match contents.bytes.len() {
        0..=PEM_BYTES_MAX => Ok(contents),
        _ => Err(io::Error::other("it is too large")),
    });
    let contents = contents.map_err(|error| PemFileError::Unreadable { path: path.to_owned(), error })?;
    let exposed = contents.exposed.then(|| file::exposed_of_relay(path.display()));
    match parse(&contents.bytes) {
        Ok(parsed) => Ok((parsed, exposed)),
        Err(error) => Err(PemFileError::NotPem { path: path.to_owned(), error }),
    }
}

/// Calls a function to decide whether to trust a server's certificate. Nothing else about it is checked, except that the server has its
/// key.
pub struct Judge<F> {
    judge: F,
    provider: Arc<CryptoProvider>,
}

impl<F: Fn(&CertificateDer<'_>) -> Result<(), rustls::Error> + Send + Sync> Judge<F> {
    /// `judge` returns an error for an untrusted certificate.
    pub fn new(judge: F) -> Self {
        Judge { judge, provider: provider() }
    }
}

impl<F> fmt::Debug for Judge<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judge")
    }
}

impl<F: Fn(&CertificateDer<'_>) -> Result<(), rustls::Error> + Send + Sync> ServerCertVerifier for Judge<F> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        (self.judge)(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
