//! Connections to cameras that the RTSP library cannot hold by itself: by TLS (RTSPS), or with media that come as datagrams. It
//! gets a loopback connection instead ([`loopback`](super::loopback)).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use url::Url;

use super::address::CameraAddress;
use super::fault::Fault;
use super::loopback::{self, Ends, Way};
use super::supervisor::DroppedDatagrams;
use crate::sys::Connection;
use crate::tls::{Judge, certificates};

/// The port of an `rtsps://` URL without one.
pub const PORT: u16 = 322;

/// How a camera's certificate is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// A PEM file with the authorities to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The SHA-256 of the certificate itself, which is then trusted whoever signed it and whatever name is in it.
    pub fingerprint: Option<[u8; 32]>,
}

/// The port of an `rtsp://` URL without one.
const PLAIN_PORT: u16 = 554;

/// Time that the RTSP library has for its connection.
const ACCEPT_MAX: Duration = Duration::from_secs(10);

/// Connects to the camera, and gives the URL of the loopback end, which takes one connection, and the connection to the camera.
///
/// TLS comes first, so that a camera whose certificate is not trusted is told of in those words.
pub(super) async fn open(
    address: &CameraAddress,
    options: &TlsOptions,
    way: Way,
    dropped: Arc<DroppedDatagrams>,
) -> Result<(Url, Option<Connection>), Fault> {
    let url = address.url();
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port().unwrap_or(if address.is_secure() { PORT } else { PLAIN_PORT });
    let camera = TcpStream::connect((host, port)).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Fault::Refused,
        _ => Fault::Unreachable(error.to_string()),
    })?;
    let connection = Connection::of(camera.as_raw_fd());
    let local = |error: io::Error| Fault::Unreachable(format!("no loopback connection: {error}"));
    let ends =
        Ends { local: camera.local_addr().map_err(local)?.ip(), camera: camera.peer_addr().map_err(local)?.ip() };
    // Requests are small and not to wait for one another's acknowledgement.
    camera.set_nodelay(true).map_err(local)?;
    let secured = if address.is_secure() {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|error| Fault::Tls(format!("host {host}: {error}")))?;
        // The system's authorities are a hundred files and more: nobody else is to wait for them.
        let options = options.clone();
        let config = tokio::task::spawn_blocking(move || config(&options)).await;
        let config = config.map_err(|error| Fault::Tls(error.to_string()))??;
        let secured = TlsConnector::from(Arc::new(config)).connect(name, camera).await;
        Ok(secured.map_err(|error| {
            let reason = address.redact(&error.to_string());
            if may_speak_no_tls(&error) { Fault::NoTls(reason) } else { Fault::Tls(reason) }
        })?)
    } else {
        Err(camera)
    };
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.map_err(local)?;
    let port = listener.local_addr().map_err(local)?.port();
    match secured {
        Ok(camera) => drop(tokio::spawn(accept(listener, camera, ends, way, dropped))),
        Err(camera) => drop(tokio::spawn(accept(listener, camera, ends, way, dropped))),
    }
    Ok((address.at_loopback(port), connection))
}

/// Carries the session of the first connection to `listener`.
async fn accept<C>(listener: TcpListener, camera: C, ends: Ends, way: Way, dropped: Arc<DroppedDatagrams>)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(Ok((near, _))) = timeout(ACCEPT_MAX, listener.accept()).await else { return };
    drop(listener);
    // It fails only if the loopback connection is gone already.
    let _ = near.set_nodelay(true);
    // Whatever ends it is seen by the RTSP library as the end of its connection.
    let _ = loopback::carry(near, camera, ends, way, dropped).await;
}

/// Whether a handshake failed as it does where the other side does not know what that is: it hung up, or answered in another
/// language.
fn may_speak_no_tls(error: &io::Error) -> bool {
    let garbled = |error: &rustls::Error| matches!(error, rustls::Error::InvalidMessage(_));
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        || error.get_ref().and_then(|inner| inner.downcast_ref()).is_some_and(garbled)
}

fn config(options: &TlsOptions) -> Result<ClientConfig, Fault> {
    let builder = ClientConfig::builder_with_provider(crate::tls::provider())
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
        // Single certificates that cannot be used do no harm to the others.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        return Err(Fault::Tls("there are no authorities to trust; set tls_ca or tls_fingerprint".to_owned()));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The SHA-256 of a certificate.
fn fingerprint(certificate: &CertificateDer<'_>) -> Vec<u8> {
    ::ring::digest::digest(&::ring::digest::SHA256, certificate).as_ref().to_vec()
}

/// Whether a certificate is the one with this hash.
fn trusts(pinned: &[u8; 32], certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    let found = fingerprint(certificate);
    if found == *pinned {
        return Ok(());
    }
    let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
    Err(rustls::Error::General(format!("the certificate's SHA-256 is {found}, not what tls_fingerprint says")))
}

/// Reads a SHA-256 in hexadecimal, with or without colons.
///
/// # Errors
/// A sentence with the cure.
pub fn parse_fingerprint(text: &str) -> Result<[u8; 32], String> {
    let digits: Vec<char> = text.chars().filter(|c| *c != ':').collect();
    let bytes: Option<Vec<u8>> = (digits.len() == 64)
        .then(|| digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok()).collect())
        .flatten();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        "is not the SHA-256 of a certificate; write 64 hexadecimal digits (openssl x509 -noout -fingerprint -sha256)".into()
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use tokio::io::copy_bidirectional;
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
        let config = ServerConfig::builder_with_provider(crate::tls::provider())
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
            spec.tls = tls;
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
            spec.tls = tls;
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
            spec.tls = TlsOptions { ca: None, fingerprint: Some([7; 32]) };
            supervise(spec, fault_is("speaks no TLS"));
        }
    }

    #[test]
    fn what_lies_unread_behind_tls_is_that_of_the_cameras_own_connection() {
        let camera = FakeCamera::start(Script::default());
        let (address, _, print) = secured(camera.address);
        let mut spec = spec(&format!("rtsps://{address}/cam"));
        spec.tls = TlsOptions { ca: None, fingerprint: Some(print) };
        supervise(spec, |source, collector| {
            if !live_times(1)(source, collector) {
                return false;
            }
            // Nobody reads as long as this thread is here; the camera sends on.
            let begun = Instant::now();
            let unread = || {
                let connections = source.connections.borrow();
                connections.iter().find(|connection| connection.peer() == address).and_then(Connection::unread)
            };
            while unread() < Some(1_000) {
                assert!(begun.elapsed() < Duration::from_secs(30), "{:?} bytes unread", unread());
                // The thread is held on purpose; the camera has threads of its own to fill the socket from.
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
        assert!(parse_fingerprint("0011").unwrap_err().contains("openssl"));
        assert!(parse_fingerprint(&"zz".repeat(32)).is_err());
    }
}
