//! A playing session as plain data, for another process that also gets its descriptors.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::access::{Access, Sent};
use super::keepalive::{KeepAlive, Method};
use super::reception::{Reception, ReceptionState};
use super::track::Track;
use super::{Client, Kind, Learned, Pending, Session, Settings, State};
use crate::media::SourceTrack;
use crate::media::saved::Moment;
use crate::source::reorder::{Reorder, ReorderState};
use crate::wire::rtsp::{Scanner, ScannerState};

/// The complete state of a playing session, except for the password.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::source) struct ClientState {
    scanner: ScannerState,
    access: Access,
    cseq: u32,
    /// Unanswered keep-alives.
    pending: Vec<(u32, Method, String, Sent)>,
    id: Option<String>,
    timeout: Duration,
    aggregate: String,
    tracks: Vec<TrackState>,
    keepalive: KeepAlive,
    learned: Learned,
    ssrc: u32,
    cname: String,
    began: Moment,
    heard: Moment,
    silent: bool,
    foreign: Option<IpAddr>,
    keepalive_due: Moment,
    report_due: Moment,
    without_packet_bytes: u64,
    /// Unsent bytes of the connection; they may start in the middle of a request.
    #[serde(with = "crate::media::saved::bytes")]
    out: Vec<u8>,
}

/// A track of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct TrackState {
    source: SourceTrack,
    channels: Option<(u8, u8)>,
    ports: Option<(u16, u16)>,
    reception: ReceptionState,
    reorder: ReorderState,
    told_by_itself: bool,
}

impl Client {
    /// The session as plain data; `None` unless it plays, because any other session is easier to restart. The caller must have taken
    /// its events and datagrams.
    pub(in crate::source) fn save(&self, now: Instant) -> Option<ClientState> {
        let Client { scanner, session } = self;
        let (State::Playing, Some(began)) = (session.state, session.began) else { return None };
        let moment = |at: Instant| Moment::of(at, now);
        let pending = session.pending.iter().filter_map(|pending| match pending.kind {
            Kind::KeepAlive(method) => Some((pending.cseq, method, pending.url.clone(), pending.sent)),
            _ => None,
        });
        let track = |track: &Track| TrackState {
            source: track.source.clone(),
            channels: track.channels,
            ports: track.ports,
            reception: track.reception.save(now),
            reorder: track.reorder.save(now),
            told_by_itself: track.told_by_itself,
        };
        Some(ClientState {
            scanner: scanner.save(),
            access: session.access.clone(),
            cseq: session.cseq,
            pending: pending.collect(),
            id: session.id.clone(),
            timeout: session.timeout,
            aggregate: session.aggregate.clone(),
            tracks: session.tracks.iter().map(track).collect(),
            keepalive: session.keepalive.clone(),
            learned: session.settings.learned.clone(),
            ssrc: session.ssrc,
            cname: session.cname.clone(),
            began: moment(began),
            heard: moment(session.heard),
            silent: session.silent,
            foreign: session.foreign,
            keepalive_due: moment(session.keepalive_due.unwrap_or(now)),
            report_due: moment(session.report_due.unwrap_or(now)),
            without_packet_bytes: session.without_packet_bytes,
            out: session.out.clone(),
        })
    }

    /// Restores a saved session, with the same reference time. `settings` come from the configuration.
    pub(in crate::source) fn restore(now: Instant, state: ClientState, settings: Settings) -> Client {
        let Client { mut session, .. } = Client::new(now, now, Settings { learned: state.learned, ..settings });
        let at = |moment: Moment| moment.at(now);
        for (place, track) in state.tracks.into_iter().enumerate() {
            if let Some((rtp, rtcp)) = track.channels {
                session.link(place, rtp, rtcp);
            }
            session.tracks.push(Track {
                source: track.source,
                channels: track.channels,
                ports: track.ports,
                reception: Reception::restore(now, &track.reception),
                reorder: Reorder::restore(now, &track.reorder),
                told_by_itself: track.told_by_itself,
                told: None,
            });
        }
        // The scanner has them in its own state.
        session.assigned.clear();
        let pending = state.pending.into_iter();
        let pending =
            pending.map(|(cseq, method, url, sent)| Pending { cseq, kind: Kind::KeepAlive(method), url, sent });
        let access = state.access.with_credentials(session.settings.credentials.clone());
        let session = Session {
            state: State::Playing,
            access,
            cseq: state.cseq,
            pending: pending.collect(),
            id: state.id,
            timeout: state.timeout,
            aggregate: state.aggregate,
            keepalive: state.keepalive,
            ssrc: state.ssrc,
            cname: state.cname,
            began: Some(at(state.began)),
            heard: at(state.heard),
            silent: state.silent,
            told_foreign: state.foreign.is_some(),
            foreign: state.foreign,
            step_due: None,
            options_due: None,
            keepalive_due: Some(at(state.keepalive_due)),
            report_due: Some(at(state.report_due)),
            without_packet_bytes: state.without_packet_bytes,
            out: state.out,
            ..session
        };
        Client { scanner: Scanner::restore(state.scanner), session }
    }
}
