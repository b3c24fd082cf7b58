//! The browser clients of a shard, and what is made for them.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::media::Description;
use crate::media::chunk::Chunk;
use crate::media::rendering::fmp4::Fragments;
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
