//! The browser clients of a shard, and what is made for them.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::media::chunk::Chunk;
use crate::media::rendering::fmp4::{Clock, ClockState, Fragments};
use crate::media::saved::Moment;
use crate::media::{Description, StreamId};
use crate::session::EndReason;
use crate::shard::types::{Still, WebClient};
use crate::wire::websocket::{self, CloseCode, Decoder, Opcode};

/// A browser's state, besides that of every client.
pub(super) struct Web {
    pub(super) client: WebClient,
    pub(super) decoder: Decoder,
    /// Until when it waits for its stream to come up.
    pub(super) waits: Option<Instant>,
    /// When it was last sent a ping.
    pub(super) pinged: Instant,
    /// Its messages since a point in time.
    pub(super) messages: (Instant, u32),
}

/// A browser's state as plain data. Its user is its connection's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct WebState {
    stream: String,
    sound: bool,
    user_agent: Option<String>,
    clock: ClockState,
    expires: Option<Moment>,
    decoder: Decoder,
    waits: Option<Moment>,
    pinged: Moment,
    messages: (Moment, u32),
}

impl WebState {
    /// The name of its stream.
    pub(super) fn stream(&self) -> &str {
        &self.stream
    }
}

impl Web {
    /// It as plain data, with its stream's name; times are relative to `reference`.
    pub(super) fn save(&self, reference: Instant, stream: &str) -> WebState {
        let moment = |at| Moment::of(at, reference);
        WebState {
            stream: stream.to_owned(),
            sound: self.client.sound,
            user_agent: self.client.user_agent.clone(),
            clock: self.client.clock.save(reference),
            expires: self.client.expires.map(moment),
            decoder: self.decoder.clone(),
            waits: self.waits.map(moment),
            pinged: moment(self.pinged),
            messages: (moment(self.messages.0), self.messages.1),
        }
    }

    /// Restores a saved one, whose stream is this one.
    pub(super) fn restore(reference: Instant, state: WebState, stream: StreamId) -> Web {
        let at = |moment: Moment| moment.at(reference);
        let client = WebClient {
            stream,
            sound: state.sound,
            user: None,
            user_agent: state.user_agent,
            clock: Clock::restore(reference, state.clock),
            expires: state.expires.map(at),
        };
        Web {
            client,
            decoder: state.decoder,
            waits: state.waits.map(at),
            pinged: at(state.pinged),
            messages: (at(state.messages.0), state.messages.1),
        }
    }
}

/// A stream's renderings for browsers.
#[derive(Default)]
pub(super) struct WebStream {
    pub(super) fragments: Option<Fragments>,
    pub(super) still: Option<Still>,
}

impl WebStream {
    /// Makes its fragments, if it has, or has had, browsers.
    pub(super) fn fragments(&mut self) -> Option<&mut Fragments> {
        self.fragments.as_mut()
    }

    /// A report of a track has arrived.
    pub(super) fn report(&mut self, chunk: &Chunk) {
        if let Some(fragments) = &mut self.fragments {
            fragments.report(chunk);
        }
    }

    /// The description has changed; `continues` says that clients stay.
    pub(super) fn described(&mut self, description: &Arc<Description>, continues: bool) {
        self.still = None;
        match &mut self.fragments {
            Some(fragments) if continues => fragments.describe(description),
            fragments => *fragments = None,
        }
    }
}

/// A close frame for a client whose session has ended.
pub(super) fn farewell(reason: EndReason) -> Bytes {
    let code = match reason {
        EndReason::Stopping => CloseCode::GoingAway,
        EndReason::Unauthorized => CloseCode::Policy,
        EndReason::SourceChanged | EndReason::StreamRemoved | EndReason::Stalled => CloseCode::TryAgain,
        _ => CloseCode::Normal,
    };
    Bytes::from(websocket::close(code, &reason.to_string()))
}

/// The message for a client that has skipped.
pub(super) fn skipped(skips: u64) -> Bytes {
    text(&json!({ "type": "skipped", "skips": skips }))
}

/// A text message.
pub(super) fn text(message: &Value) -> Bytes {
    Bytes::from(websocket::frame(Opcode::Text, message.to_string().as_bytes()))
}
