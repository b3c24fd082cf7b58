//! A publisher's announcement.

use serde::{Deserialize, Serialize};

use super::resource::without_credentials;
use super::sessions::SetUp;
use crate::media::{SourceTrack, StreamId, TrackId};
use crate::wire::sdp;

/// A publisher's announcement.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    pub(super) stream: StreamId,
    tracks: Vec<AnnouncedTrack>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AnnouncedTrack {
    pub(super) source: Result<SourceTrack, Unreadable>,
    pub(super) control: String,
}

/// Why a track cannot be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("its m= line has no RTP payload type")]
    PayloadType,
    #[error("its payload type {0} is dynamic, and no a=rtpmap names the encoding")]
    RtpMap(u8),
}

/// An announcement as plain data, without its stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AnnouncedState {
    tracks: Vec<AnnouncedTrack>,
}

impl AnnouncedState {
    /// The announcement of that stream.
    pub(super) fn restore(self, stream: StreamId) -> Announced {
        Announced { stream, tracks: self.tracks }
    }
}

impl Announced {
    /// It as plain data.
    pub(super) fn save(&self) -> AnnouncedState {
        AnnouncedState { tracks: self.tracks.clone() }
    }

    /// A stream's tracks, from the body of an ANNOUNCE.
    pub(super) fn new(stream: StreamId, tracks: Vec<AnnouncedTrack>) -> Announced {
        Announced { stream, tracks }
    }

    /// An announced track that was set up.
    pub(super) fn track(&self, track: TrackId) -> &AnnouncedTrack {
        &self.tracks[usize::from(track.0)]
    }

    /// The track that a SETUP's URL names: the one whose control it ends with, otherwise the first one that is not set up.
    pub(super) fn track_of(&self, url: &str, set_up: &[SetUp]) -> Option<TrackId> {
        let url = without_credentials(url);
        let url = url.trim_end_matches('/');
        let named = self.tracks.iter().position(|track| {
            let control = track.control.trim_end_matches('/');
            let end = url.strip_suffix(control).filter(|_| !control.is_empty() && control != "*");
            end.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        });
        let is_left = |index: &usize| set_up.iter().all(|have| usize::from(have.track.0) != *index);
        let index = named.or_else(|| (0..self.tracks.len()).find(is_left))?;
        Some(TrackId(index as u8))
    }
}

/// The tracks of a publisher's description, including those that cannot be relayed.
pub(super) fn announced_tracks(body: &[u8]) -> Vec<AnnouncedTrack> {
    let track = |mut media: sdp::MediaAttrs| {
        let control = media.control.take().unwrap_or_default();
        AnnouncedTrack { source: readable(media), control }
    };
    sdp::media_attributes(body).into_iter().map(track).collect()
}

fn readable(media: sdp::MediaAttrs) -> Result<SourceTrack, Unreadable> {
    let payload_type = media.payload_type.ok_or(Unreadable::PayloadType)?;
    let assigned = sdp::static_payload(payload_type);
    let (encoding, clock_rate, channels) = match media.rtpmap {
        Some(rtpmap) => (rtpmap.encoding, rtpmap.clock_rate, rtpmap.channels),
        None => assigned
            .map(|(encoding, rate, channels)| (encoding.to_owned(), rate, channels))
            .ok_or(Unreadable::RtpMap(payload_type))?,
    };
    Ok(SourceTrack {
        media: media.media,
        encoding,
        payload_type,
        clock_rate,
        channels,
        fmtp: media.fmtp,
        attributes: media.attributes,
    })
}
