//! Receives a stream like a browser, with tungstenite, an independent implementation.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

use super::DEADLINE;

/// A message of the stream.
#[derive(Clone, Debug)]
pub enum Said {
    /// A text, as JSON.
    Text(Value),
    /// An initialization segment of a track.
    Init(u8, Vec<u8>),
    /// A fragment of a track, and whether decoding can start there.
    Fragment(u8, bool, Vec<u8>),
    /// A JPEG picture.
    Picture(Vec<u8>),
    /// The end, with its code and reason.
    Closed(u16, String),
}

/// A connection.
pub struct Watcher {
    socket: WebSocket<TcpStream>,
    /// The newest initialization segment of each track.
    pub inits: Vec<(u8, Vec<u8>)>,
    /// All text messages so far.
    pub texts: Vec<Value>,
}

/// A connection, or the status with which it was refused.
pub fn watch_with(address: SocketAddr, path: &str, headers: &[(&'static str, &str)]) -> Result<Watcher, u16> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(Watcher { socket, inits: Vec::new(), texts: Vec::new() }),
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Watches a stream.
pub fn watch(address: SocketAddr, path: &str) -> Watcher {
    watch_with(address, path, &[]).unwrap_or_else(|status| panic!("{path}: {status}"))
}

impl Watcher {
    /// The next message. The library answers pings.
    pub fn next(&mut self) -> Said {
        let end = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < end, "nothing comes");
            let said = match self.socket.read() {
                Ok(Message::Text(text)) => Said::Text(serde_json::from_str(&text).unwrap()),
                Ok(Message::Binary(bytes)) => match (bytes[0], bytes[1]) {
                    (track, 0) => Said::Init(track, bytes[2..].to_vec()),
                    (track, kind @ (1 | 2)) => Said::Fragment(track, kind == 1, bytes[2..].to_vec()),
                    (_, _) => Said::Picture(bytes[10..].to_vec()),
                },
                Ok(Message::Close(frame)) => match frame {
                    Some(frame) => Said::Closed(frame.code.into(), frame.reason.to_string()),
                    None => Said::Closed(1005, String::new()),
                },
                Ok(_) => continue,
                Err(error) => Said::Closed(1006, error.to_string()),
            };
            match &said {
                Said::Text(text) => self.texts.push(text.clone()),
                Said::Init(track, segment) => {
                    self.inits.retain(|(of, _)| of != track);
                    self.inits.push((*track, segment.clone()));
                }
                _ => {}
            }
            return said;
        }
    }

    /// The next text message of this type.
    pub fn text(&mut self, kind: &str) -> Value {
        loop {
            match self.next() {
                Said::Text(text) if text["type"] == kind => return text,
                Said::Closed(code, reason) => panic!("closed before a text of type {kind}: {code} {reason}"),
                _ => {}
            }
        }
    }

    /// The next fragment of a track.
    pub fn fragment(&mut self, track: u8) -> (bool, Vec<u8>) {
        loop {
            match self.next() {
                Said::Fragment(of, is_sync, bytes) if of == track => return (is_sync, bytes),
                Said::Closed(code, reason) => panic!("closed before a fragment: {code} {reason}"),
                _ => {}
            }
        }
    }

    /// The code and reason at the end of the connection.
    pub fn end(&mut self) -> (u16, String) {
        loop {
            if let Said::Closed(code, reason) = self.next() {
                return (code, reason);
            }
        }
    }

    /// Sends a text message.
    pub fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Sends raw bytes.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        std::io::Write::write_all(self.socket.get_mut(), bytes).unwrap();
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        self.socket.get_ref()
    }

    /// An initialization segment and this many fragments of a track: a file.
    pub fn file(&mut self, track: u8, fragments: usize) -> Vec<u8> {
        let media: Vec<Vec<u8>> = (0..fragments).map(|_| self.fragment(track).1).collect();
        let (_, init) = self.inits.iter().find(|(of, _)| *of == track).expect("an initialization segment comes first");
        [init.clone(), media.concat()].concat()
    }
}
