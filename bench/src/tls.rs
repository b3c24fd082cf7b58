//! TLS for the generator's players (`rtsps://`), without verifying the server, which is one's own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, LazyLock};

use rtsprelay::trust::{Judge, provider};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Judge::new(|_| Ok(()))))
        .with_no_client_auth();
    // Every player does a full handshake, as real players do.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
});

/// One player's TLS.
pub struct Tls(Box<ClientConnection>);

impl Tls {
    /// Towards `host`, a name or an address.
    ///
    /// # Errors
    /// A sentence, if the host cannot be the name in a certificate.
    pub fn new(host: &str) -> Result<Tls, String> {
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|error| format!("rtsps://: {error}"))?;
        let connection = ClientConnection::new(Arc::clone(&CONFIG), name).map_err(|error| error.to_string())?;
        Ok(Tls(Box::new(connection)))
    }

    /// Takes a request; it goes out when the handshake is done.
    ///
    /// # Errors
    /// Those of the socket, and `WouldBlock` if it does not take all of what waits.
    pub fn send(&mut self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        self.0.writer().write_all(bytes)?;
        self.flush(stream)
    }

    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(stream)?;
        }
        Ok(())
    }

    /// Reads and decrypts received data; 0 bytes: the server has closed the connection.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, neither in the socket nor here; those of the socket, and of TLS.
    pub fn receive(&mut self, stream: &mut TcpStream, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            if self.0.read_tls(stream)? == 0 {
                return Ok(0);
            }
            let state = self.0.process_new_packets();
            // The handshake's next step, or what is wrong.
            self.flush(stream)?;
            state.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}
