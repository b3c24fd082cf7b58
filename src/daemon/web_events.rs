//! `/+events` as a WebSocket: events of the streams that a browser may see, one per text message.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{interval, timeout};

use super::events::{EventText, Events};
use crate::limits::{WEBSOCKET_MESSAGES_PER_S_MAX, WEBSOCKET_PING_EVERY_S};
use crate::wire::websocket::{self, CloseCode, Decoder, Message, Opcode};

/// How long a reader may take to receive a message before its connection ends.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// A reader that sends nothing for this long counts as gone, because it should answer pings.
const HEARD_MAX: Duration = Duration::from_secs(3 * WEBSOCKET_PING_EVERY_S);

/// Passes events on until the reader is gone. `sees` decides for each event whether the reader may see it; `None` means that it may see
/// nothing any more.
pub(super) async fn pass_on(
    stream: TcpStream,
    unread: &[u8],
    mut events: Receiver<EventText>,
    sees: impl Fn(Option<&EventText>) -> Option<bool>,
) {
    let (from, mut to) = stream.into_split();
    let mut reader = Reader { from, decoder: Decoder::default(), heard: Instant::now(), messages: (Instant::now(), 0) };
    reader.decoder.feed(unread);
    let mut pings = interval(Duration::from_secs(WEBSOCKET_PING_EVERY_S));
    // The first one would be immediate.
    pings.reset();
    loop {
        let frames = tokio::select! {
            event = events.recv() => match event {
                Ok(event) => match sees(Some(&event)) {
                    Some(true) => Ok(websocket::frame(Opcode::Text, event.text.as_bytes())),
                    Some(false) => continue,
                    None => Err(websocket::close(CloseCode::Policy, "what let you in holds no more")),
                },
                Err(RecvError::Lagged(missed)) => Ok(websocket::frame(Opcode::Text, Events::missed(missed).as_bytes())),
                Err(RecvError::Closed) => Err(websocket::close(CloseCode::GoingAway, "the relay stops")),
            },
            _ = pings.tick() => match sees(None) {
                Some(_) if reader.heard.elapsed() < HEARD_MAX => Ok(websocket::frame(Opcode::Ping, &[])),
                Some(_) => return,
                None => Err(websocket::close(CloseCode::Policy, "what let you in holds no more")),
            },
            answer = reader.answer() => answer,
        };
        let (is_last, bytes) = match frames {
            Ok(bytes) => (false, bytes),
            Err(bytes) => (true, bytes),
        };
        if !write(&mut to, &bytes).await || is_last {
            return;
        }
    }
}

/// Whether the reader has received it.
async fn write(to: &mut OwnedWriteHalf, bytes: &[u8]) -> bool {
    bytes.is_empty() || timeout(WRITE_MAX, to.write_all(bytes)).await.is_ok_and(|written| written.is_ok())
}

/// Messages from the browser.
struct Reader {
    from: OwnedReadHalf,
    decoder: Decoder,
    heard: Instant,
    /// Number of messages since a time.
    messages: (Instant, u32),
}

impl Reader {
    /// The response to its next messages.
    ///
    /// # Errors
    /// The last bytes to send to it.
    async fn answer(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        loop {
            match self.decoder.next_message() {
                Ok(None) => {}
                Ok(Some(message)) => {
                    if let Some(answer) = self.answer_to(message)? {
                        return Ok(answer);
                    }
                    continue;
                }
                Err(fault) => return Err(websocket::close(fault.code(), &fault.to_string())),
            }
            let mut bytes = [0; 1_024];
            match self.from.read(&mut bytes).await {
                Ok(count @ 1..) => self.decoder.feed(&bytes[..count]),
                _ => return Err(Vec::new()),
            }
            self.heard = Instant::now();
        }
    }

    fn answer_to(&mut self, message: Message) -> Result<Option<Vec<u8>>, Vec<u8>> {
        if self.messages.0.elapsed() >= Duration::from_secs(1) {
            self.messages = (Instant::now(), 0);
        }
        self.messages.1 += 1;
        if self.messages.1 > WEBSOCKET_MESSAGES_PER_S_MAX {
            return Err(websocket::close(CloseCode::Policy, "too many messages"));
        }
        match message {
            Message::Ping(payload) => Ok(Some(websocket::frame(Opcode::Pong, &payload))),
            Message::Close => Err(websocket::close(CloseCode::Normal, "")),
            // A newer page may send other messages.
            Message::Pong | Message::Text(_) | Message::Binary(_) => Ok(None),
        }
    }
}
