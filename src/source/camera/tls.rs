//! TLS to cameras (`rtsps://`): the certificate check and the handshake.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::address::CameraAddress;
use super::fault::Fault;
use crate::trust::{Judge, certificates, provider};

/// How a camera's certificate is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// A PEM file with the CA certificates to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The SHA-256 of the certificate itself, which is then trusted regardless of its issuer and name.
    pub fingerprint: Option<[u8; 32]>,
}

/// Does the TLS handshake with a camera.
///
/// # Errors
/// [`Fault::Tls`] if its certificate is not trusted, [`Fault::NoTls`] if it does not use TLS.
pub(super) async fn connect(
    address: &CameraAddress,
    options: &TlsOptions,
    camera: TcpStream,
) -> Result<TlsStream<TcpStream>, Fault> {
    let (host, ..) = address.target();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| Fault::Tls(format!("host {host}: {error}")))?;
    // The system has a hundred CA files or more: loading them must not block other tasks.
    let options = options.clone();
    let config = tokio::task::spawn_blocking(move || config(&options)).await;
    let config = config.map_err(|error| Fault::Tls(error.to_string()))??;
    let secured = TlsConnector::from(Arc::new(config)).connect(name, camera).await;
    secured.map_err(|error| {
        let reason = address.redact(&error.to_string());
        if may_speak_no_tls(&error) { Fault::NoTls(reason) } else { Fault::Tls(reason) }
    })
}

/// Whether a handshake failed as it does if the other side does not use TLS: it closed the connection, or answered in another protocol.
fn may_speak_no_tls(error: &io::Error) -> bool {
    let garbled = |error: &rustls::Error| matches!(error, rustls::Error::InvalidMessage(_));
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        || error.get_ref().and_then(|inner| inner.downcast_ref()).is_some_and(garbled)
}

fn config(options: &TlsOptions) -> Result<ClientConfig, Fault> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::Tls(error.to_string()))?;
    if let Some(fingerprint) = options.fingerprint {
        let judge = move |certificate: &CertificateDer<'_>| trusts(&fingerprint, certificate);
        let verifier = Arc::new(Judge::new(judge));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match &options.ca {
        Some(path) => {
            for certificate in certificates(path).map_err(|fault| Fault::Tls(format!("tls_ca: {fault}")))? {
                let unusable = |error| Fault::Tls(format!("tls_ca {}: {error}", path.display()));
                roots.add(certificate).map_err(unusable)?;
            }
        }
        // A few unusable CA certificates do not matter.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        return Err(Fault::Tls("there are no CA certificates to trust; set tls_ca or tls_fingerprint".to_owned()));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The SHA-256 of a certificate.
fn fingerprint(certificate: &CertificateDer<'_>) -> Vec<u8> {
    ::ring::digest::digest(&::ring::digest::SHA256, certificate).as_ref().to_vec()
}

/// Whether a certificate has this hash.
fn trusts(pinned: &[u8; 32], certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    let found = fingerprint(certificate);
    if found == *pinned {
        return Ok(());
    }
    let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
    Err(rustls::Error::General(format!("the certificate's SHA-256 is {found}, not what tls_fingerprint says")))
}

/// A text that is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the SHA-256 of a certificate; write 64 hexadecimal digits (openssl x509 -noout -fingerprint -sha256)")]
pub struct BadFingerprint;

/// Parses a SHA-256 in hexadecimal, with or without colons.
///
/// # Errors
/// The text is not one.
pub fn parse_fingerprint(text: &str) -> Result<[u8; 32], BadFingerprint> {
    let digits: Vec<char> = text.chars().filter(|c| *c != ':').collect();
    let bytes: Option<Vec<u8>> = (digits.len() == 64)
        .then(|| digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok()).collect())
        .flatten();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(BadFingerprint)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    use tokio::io::copy_bidirectional;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    use super::*;
    use crate::source::fake_camera::{FakeCamera, Script};
    use crate::source::tests::{fault_is, live_times, spec, supervise};

    /// TLS in front of a fake camera: its address, its certificate as PEM and its fingerprint.
    fn secured(camera: SocketAddr) -> (SocketAddr, String, [u8; 32]) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let print = fingerprint(&certificate).try_into().unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let acceptor = TlsAcceptor::from(Arc::new(config));
                while let Ok((stream, _)) = listener.accept().await {
                    // A client that does not trust the certificate leaves.
                    let Ok(mut far) = acceptor.accept(stream).await else { continue };
                    let mut near = TcpStream::connect(camera).await.unwrap();
                    tokio::spawn(async move { copy_bidirectional(&mut far, &mut near).await });
                }
            });
        });
        (address, made.cert.pem(), print)
    }

    #[test]
    fn a_camera_is_pulled_through_tls_if_its_certificate_is_trusted() {
        let camera = FakeCamera::start(Script { credentials: Some(("admin", "secret")), ..Script::default() });
        let (address, pem, print) = secured(camera.address);
        let file = std::env::temp_dir().join(format!("rtsprelay-ca-{}.pem", std::process::id()));
        std::fs::write(&file, pem).unwrap();
        let by_name = format!("rtsps://admin:secret@localhost:{}/cam", address.port());
        let by_address = format!("rtsps://admin:secret@{address}/cam");
        for (url, tls) in [
            (&by_name, TlsOptions { ca: Some(file.clone()), fingerprint: None }),
            (&by_address, TlsOptions { ca: None, fingerprint: Some(print) }),
        ] {
            let mut spec = spec(url);
            spec.camera.tls = tls;
            let (source, _) = supervise(spec, live_times(1));
            assert_eq!(source.status.borrow().failures, 0);
        }
        for (url, tls, named) in [
            (&by_address, TlsOptions { ca: Some(file.clone()), fingerprint: None }, "certificate"),
            (&by_name, TlsOptions::default(), "certificate"),
            (&by_name, TlsOptions { ca: None, fingerprint: Some([7; 32]) }, "tls_fingerprint"),
            (&by_name, TlsOptions { ca: Some("/nonexistent.pem".into()), fingerprint: None }, "/nonexistent.pem"),
        ] {
            let mut spec = spec(url);
            spec.camera.tls = tls;
            supervise(spec, fault_is(named));
        }
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_port_without_tls_is_named_as_one() {
        for answer in [&b""[..], b"RTSP/1.0 400 Bad Request\r\n\r\n"] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("rtsps://admin:secret@{}/cam", listener.local_addr().unwrap());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(answer);
                }
            });
            let mut spec = spec(&url);
            spec.camera.tls = TlsOptions { ca: None, fingerprint: Some([7; 32]) };
            supervise(spec, fault_is("port without TLS"));
        }
    }

    #[test]
    fn what_lies_unread_behind_tls_is_that_of_the_cameras_own_connection() {
        let camera = FakeCamera::start(Script::default());
        let (address, _, print) = secured(camera.address);
        let mut spec = spec(&format!("rtsps://{address}/cam"));
        spec.camera.tls = TlsOptions { ca: None, fingerprint: Some(print) };
        supervise(spec, |source, collector| {
            if !live_times(1)(source, collector) {
                return false;
            }
            // Nobody reads as long as this thread exists; the camera keeps sending.
            let begun = Instant::now();
            let unread = || {
                let connections = source.connections.borrow();
                connections
                    .iter()
                    .find(|connection| connection.peer() == address)
                    .and_then(crate::sys::Connection::unread)
            };
            while unread() < Some(1_000) {
                assert!(begun.elapsed() < Duration::from_secs(30), "{:?} bytes unread", unread());
                // The thread is blocked on purpose; the camera has its own threads to fill the socket.
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(source.unread_bytes() >= Some(1_000), "{:?}", source.unread_bytes());
            true
        });
    }

    #[test]
    fn a_fingerprint_is_read_with_and_without_colons() {
        let plain = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
        let with_colons =
            plain.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair)).collect::<Vec<_>>().join(":");
        assert_eq!(parse_fingerprint(plain).unwrap()[1], 0x11);
        assert_eq!(parse_fingerprint(plain), parse_fingerprint(&with_colons));
        assert!(parse_fingerprint("0011").unwrap_err().to_string().contains("openssl"));
        assert!(parse_fingerprint(&"zz".repeat(32)).is_err());
    }
}
