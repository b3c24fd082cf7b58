//! Events for programs: streams wanted, made, live, down and gone; clients that start and stop, with reasons.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tokio::sync::broadcast;

use super::console::Console;
use crate::metrics::lines::rfc3339;

/// Maximum number of events that a reader may be behind; beyond that it is told how many it missed.
const KEPT: usize = 1_024;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A client waits for a publisher of a name under a pattern.
    Wanted,
    /// A stream was created by name, or added.
    Made,
    /// A stream's media come.
    Live,
    /// They come no more.
    Down,
    /// A stream was removed, and why.
    Gone(&'static str),
    /// A client plays.
    ClientCame {
        /// Its address.
        client: SocketAddr,
        /// Its session.
        session: String,
        /// How it gets its media.
        transport: &'static str,
    },
    /// A client does not play any more.
    ClientGone {
        /// Its address.
        client: SocketAddr,
        /// Its session.
        session: String,
        /// Why.
        reason: &'static str,
    },
}

/// An event as readers receive it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EventText {
    /// The stream that it is about.
    pub stream: Arc<str>,
    /// If it is about a client, its address.
    pub is_of_client: bool,
    /// It with the stream and when it happened, as JSON.
    pub text: Arc<str>,
}

/// Notifies the readers. A reader that does not read delays nothing else.
#[derive(Clone, Debug)]
pub(super) struct Events {
    queue: broadcast::Sender<EventText>,
}

impl Events {
    /// Nobody listens yet.
    pub(super) fn new() -> Events {
        Events { queue: broadcast::Sender::new(KEPT) }
    }

    /// From now on.
    pub(super) fn listen(&self) -> broadcast::Receiver<EventText> {
        self.queue.subscribe()
    }

    /// Prints them on standard output, a line each, for as long as the relay runs.
    pub(super) async fn print(self) {
        let mut events = self.listen();
        loop {
            match events.recv().await {
                Ok(event) => Console::get().print(format!("{}\n", event.text)),
                Err(broadcast::error::RecvError::Lagged(missed)) => Console::get().print(Events::missed(missed) + "\n"),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// The message for a reader that has missed this many events because it was slow.
    pub(super) fn missed(events: u64) -> String {
        format!("{{\"event\":\"missed\",\"events\":{events}}}")
    }

    /// Reports an event of a stream.
    pub(super) fn tell(&self, stream: &str, event: &Event) {
        if self.queue.receiver_count() > 0 {
            // A reader that has gone meanwhile needs no event.
            let _ = self.queue.send(EventText {
                stream: stream.into(),
                is_of_client: matches!(event, Event::ClientCame { .. } | Event::ClientGone { .. }),
                text: json(SystemTime::now(), stream, event).into(),
            });
        }
    }
}

/// An event as a JSON object.
fn json(at: SystemTime, stream: &str, event: &Event) -> String {
    let mut object = Map::new();
    let mut put = |key: &str, value: &str| drop(object.insert(key.to_owned(), Value::from(value)));
    put("event", event.name());
    put("at", &rfc3339(at));
    put("stream", stream);
    match event {
        Event::Gone(reason) => put("reason", reason),
        Event::ClientCame { client, session, transport } => {
            put("client", &client.to_string());
            put("session", session);
            put("transport", transport);
        }
        Event::ClientGone { client, session, reason } => {
            put("client", &client.to_string());
            put("session", session);
            put("reason", reason);
        }
        Event::Wanted | Event::Made | Event::Live | Event::Down => {}
    }
    crate::escape::json(Value::Object(object).to_string())
}

impl Event {
    /// What it is called; stable.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Event::Wanted => "wanted",
            Event::Made => "made",
            Event::Live => "live",
            Event::Down => "down",
            Event::Gone(_) => "gone",
            Event::ClientCame { .. } => "client_came",
            Event::ClientGone { .. } => "client_gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_json() {
        let gone = Event::ClientGone {
            client: "192.0.2.1:5".parse().unwrap(),
            session: "00ff".into(),
            reason: "disconnected",
        };
        let text = json(SystemTime::UNIX_EPOCH, "live/a", &gone);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((value["event"].as_str(), value["stream"].as_str()), (Some("client_gone"), Some("live/a")));
        assert_eq!((value["reason"].as_str(), value["client"].as_str()), (Some("disconnected"), Some("192.0.2.1:5")));
        assert!(!text.contains('\n') && value["at"].as_str().unwrap().starts_with("1970-01-01T"), "{text}");
    }

    #[test]
    fn a_reader_that_is_behind_is_told_how_far() {
        let events = Events::new();
        events.tell("a", &Event::Live);
        let mut reader = events.listen();
        for _ in 0..KEPT + 5 {
            events.tell("a", &Event::Live);
        }
        assert_eq!(reader.try_recv(), Err(broadcast::error::TryRecvError::Lagged(5)));
        assert!(reader.try_recv().is_ok_and(|told| &*told.stream == "a" && !told.is_of_client));
    }
}
