//! The sessions of a server: their tracks, and their state between SETUP and end.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Index;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ids::Ids;
use super::timers::Armed;
use super::types::{ConnId, Delivery, FirstPacket, PlayTrack, SessionInfo, SessionKey, SessionLimit};
use crate::access::User;
use crate::burst::ShrinkIfSparse;
use crate::limits::{UDP_ORPHANED_S, USER_AGENT_CHARS_MAX};
use crate::media::saved::Moment;
use crate::media::{Description, StreamId, TrackId};
use crate::wire::rtsp::Status;
use crate::wire::transport::Lower;

/// A track of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SetUp {
    pub(super) track: TrackId,
    pub(super) delivery: Delivery,
    /// The URL with which the client set it up, for `RTP-Info`, because players compare it with theirs.
    pub(super) url: String,
    /// What a publisher sends on it is discarded, because its encoding is unknown.
    pub(super) discarded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Set up, or paused.
    Ready,
    /// PLAY was requested, and the shard has not answered yet.
    Starting,
    Playing,
}

/// A session as plain data, without its user, its stream and its connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SessionState {
    peer: SocketAddr,
    publishes: bool,
    heard: Moment,
    playing: bool,
    played: bool,
    announced: bool,
    tracks: Vec<SetUp>,
    rtp_info: String,
    user_agent: Option<String>,
    moved: bool,
    /// It is not interleaved.
    #[serde(default)]
    datagrams: bool,
    #[serde(default)]
    hint_ports: bool,
    #[serde(default)]
    orphaned: Option<Moment>,
}

/// The parameters of a new session.
pub(super) struct NewSession {
    pub(super) peer: SocketAddr,
    pub(super) stream: StreamId,
    pub(super) description: Arc<Description>,
    pub(super) lower: Lower,
    pub(super) conn: ConnId,
    /// It is a publisher's.
    pub(super) publishes: bool,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: SocketAddr,
    /// Its user, if users are configured.
    pub(super) user: Option<Arc<User>>,
    pub(super) stream: StreamId,
    /// The stream's description when it was last checked.
    pub(super) description: Arc<Description>,
    pub(super) lower: Lower,
    /// Whether it is a publisher's.
    pub(super) publishes: bool,
    pub(super) heard: Instant,
    /// Whether to log if a publisher's datagrams come from other ports than it announced.
    pub(super) hint_ports: bool,
    pub(super) timer: Armed,
    state: State,
    /// Whether it has played before.
    played: bool,
    /// Whether the shard knows it.
    announced: bool,
    /// In the order of their numbers.
    tracks: Vec<SetUp>,
    /// The connection on which it was last used, while that is open. For interleaved media always the one that carries it.
    conn: Option<ConnId>,
    /// `RTP-Info` of the last start.
    rtp_info: String,
    user_agent: Option<String>,
    /// Whether it was named on more than one connection.
    moved: bool,
    /// When the connection ended that its player had kept open while it played.
    orphaned: Option<Instant>,
}

impl Session {
    /// A session without tracks, and without a connection.
    pub(super) fn new(now: Instant, new: &NewSession, user: Option<Arc<User>>) -> Session {
        Session {
            peer: new.peer,
            user,
            stream: new.stream,
            description: Arc::clone(&new.description),
            lower: new.lower,
            publishes: new.publishes,
            heard: now,
            hint_ports: new.lower == Lower::Udp,
            timer: Armed::default(),
            state: State::Ready,
            played: false,
            announced: false,
            tracks: Vec::new(),
            conn: None,
            rtp_info: String::new(),
            user_agent: None,
            moved: false,
            orphaned: None,
        }
    }

    /// It as plain data, if it is not about to start; times are relative to `reference`.
    pub(super) fn save(&self, reference: Instant) -> Option<SessionState> {
        (self.state != State::Starting).then(|| SessionState {
            peer: self.peer,
            publishes: self.publishes,
            heard: Moment::of(self.heard, reference),
            playing: self.state == State::Playing,
            played: self.played,
            announced: self.announced,
            tracks: self.tracks.clone(),
            rtp_info: self.rtp_info.clone(),
            user_agent: self.user_agent.clone(),
            moved: self.moved,
            datagrams: self.lower == Lower::Udp,
            hint_ports: self.hint_ports,
            orphaned: self.orphaned.map(|at| Moment::of(at, reference)),
        })
    }

    /// Restores a saved one.
    pub(super) fn restore(
        reference: Instant,
        state: SessionState,
        (stream, description): (StreamId, Arc<Description>),
        user: Option<Arc<User>>,
        conn: Option<ConnId>,
    ) -> Session {
        Session {
            peer: state.peer,
            user,
            stream,
            description,
            lower: if state.datagrams { Lower::Udp } else { Lower::Tcp },
            publishes: state.publishes,
            heard: state.heard.at(reference),
            hint_ports: state.hint_ports,
            timer: Armed::default(),
            state: if state.playing { State::Playing } else { State::Ready },
            played: state.played,
            announced: state.announced,
            tracks: state.tracks,
            conn,
            rtp_info: state.rtp_info,
            user_agent: state.user_agent,
            moved: state.moved,
            orphaned: state.orphaned.map(|at| at.at(reference)),
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether it has played before.
    pub(super) fn has_played(&self) -> bool {
        self.played
    }

    /// Whether it is set up and has not played: then tracks can be added.
    pub(super) fn is_being_set_up(&self) -> bool {
        self.state == State::Ready && !self.played
    }

    /// Whether the shard knows it.
    pub(super) fn is_announced(&self) -> bool {
        self.announced
    }

    /// The shard is asked to start it.
    pub(super) fn ask(&mut self) {
        self.state = State::Starting;
        self.announced = true;
    }

    /// It plays now, if it was to start; returns whether it was.
    pub(super) fn start(&mut self) -> bool {
        let starts = self.state == State::Starting;
        if starts {
            self.state = State::Playing;
            self.played = true;
        }
        starts
    }

    /// It does not start, if it was to; returns whether it was.
    pub(super) fn refuse(&mut self) -> bool {
        let starts = self.state == State::Starting;
        if starts {
            self.state = State::Ready;
        }
        starts
    }

    /// Stops playing.
    pub(super) fn pause(&mut self) {
        self.state = State::Ready;
    }

    /// Its tracks, in the order of their numbers.
    pub(super) fn tracks(&self) -> &[SetUp] {
        &self.tracks
    }

    /// Adds a new track.
    pub(super) fn add_track(&mut self, set_up: SetUp) {
        let at = self.tracks.partition_point(|have| have.track < set_up.track);
        debug_assert!(self.tracks.get(at).is_none_or(|have| have.track != set_up.track));
        // Most have one or two, and a vector would allocate room for four.
        self.tracks.reserve_exact(1);
        self.tracks.insert(at, set_up);
    }

    /// Removes a track, if it is there.
    pub(super) fn drop_track(&mut self, track: TrackId) -> Option<SetUp> {
        let at = self.tracks.iter().position(|have| have.track == track)?;
        Some(self.tracks.remove(at))
    }

    /// The tracks in the shard's form.
    pub(super) fn play_tracks(&self) -> Vec<PlayTrack> {
        self.tracks.iter().map(|set_up| PlayTrack { track: set_up.track, delivery: set_up.delivery }).collect()
    }

    /// The connection on which it was last used, while that is open.
    pub(super) fn conn(&self) -> Option<ConnId> {
        self.conn
    }

    /// It is used on this connection from now on. Returns the previous one.
    pub(super) fn bind(&mut self, conn: ConnId) -> Option<ConnId> {
        // A change, not its first SETUP.
        self.moved |= !self.tracks.is_empty();
        self.orphaned = None;
        self.conn.replace(conn)
    }

    /// Its connection has ended, but it has not.
    pub(super) fn unbind(&mut self) {
        self.conn = None;
    }

    /// Its connection ends, which its player had kept open while it played. Returns whether the session likely ends too: if it plays
    /// over UDP, and uses no other connection.
    pub(super) fn orphan(&mut self, now: Instant) -> bool {
        let by_datagrams = self.tracks.iter().any(|track| matches!(track.delivery, Delivery::Udp { .. }));
        let is_orphan = by_datagrams && self.state == State::Playing && !self.publishes && !self.moved;
        if is_orphan {
            self.orphaned = Some(now);
        }
        is_orphan
    }

    /// When it ends if its player, whose connection has ended, sends nothing.
    pub(super) fn orphaned_until(&self) -> Option<Instant> {
        let since = self.orphaned.filter(|since| *since >= self.heard)?;
        Some(since + Duration::from_secs(UDP_ORPHANED_S))
    }

    /// Whether it plays over UDP, and its open connection shows that its client is there.
    pub(super) fn waits_for_media(&self) -> bool {
        self.lower == Lower::Udp && self.state == State::Playing && !self.publishes && self.conn.is_some()
    }

    /// When it ends without a sign of life from its client; `is_away`: whether the stream's source is.
    pub(super) fn deadline(&self, timeout: Duration, is_away: bool) -> Option<Instant> {
        // A connection that accepts the media is a sign of life by itself: some players never send anything.
        let carried = self.lower == Lower::Tcp && self.state != State::Ready;
        let waits = self.waits_for_media() && is_away;
        let silent = self.heard + timeout;
        (!carried && !waits).then(|| self.orphaned_until().map_or(silent, |until| until.min(silent)))
    }

    /// `RTP-Info` of the last start.
    pub(super) fn rtp_info(&self) -> &str {
        &self.rtp_info
    }

    /// Records `RTP-Info` of a start (RFC 2326 section 12.33).
    pub(super) fn set_rtp_info(&mut self, now: Instant, first: &[FirstPacket]) {
        let entry = |set_up: &SetUp| {
            let known =
                first.iter().find(|packet| packet.track == set_up.track).map(|packet| (packet.seq, packet.rtp_time));
            let estimate = || {
                let track = self.description.tracks.get(usize::from(set_up.track.0))?;
                Some((track.first_seq, track.rtp_time_at(track.clock, now)))
            };
            let (seq, rtp_time) = known.or_else(estimate).unwrap_or((0, 0));
            format!("url={};seq={seq};rtptime={rtp_time}", unbroken(&set_up.url))
        };
        self.rtp_info = self.tracks.iter().map(entry).collect::<Vec<_>>().join(",");
    }

    /// Records the client's `User-Agent`.
    pub(super) fn set_user_agent(&mut self, agent: &str) {
        self.user_agent = Some(agent.chars().filter(|c| !c.is_control()).take(USER_AGENT_CHARS_MAX).collect());
    }

    /// Its data for the status page.
    pub(super) fn info(&self) -> SessionInfo {
        SessionInfo {
            peer: self.peer,
            conn: self.conn,
            stream: self.stream,
            tracks: self.play_tracks(),
            playing: self.state == State::Playing,
            user_agent: self.user_agent.clone(),
        }
    }
}

/// A URL for `RTP-Info`, whose lists and parameters are separated by commas and semicolons; escaped (RFC 3986 section 2.1) it is
/// equivalent.
fn unbroken(url: &str) -> Cow<'_, str> {
    if url.contains([',', ';']) { url.replace(',', "%2C").replace(';', "%3B").into() } else { url.into() }
}

/// The sessions of a server, each of which counts towards the limit of all shards while it exists.
#[derive(Debug)]
pub(super) struct Sessions {
    sessions: HashMap<SessionKey, Session>,
    ids: Ids,
    limit: Arc<SessionLimit>,
}

impl Sessions {
    pub(super) fn new(ids: Ids, limit: Arc<SessionLimit>) -> Sessions {
        Sessions { sessions: HashMap::new(), ids, limit }
    }

    pub(super) fn get(&self, key: SessionKey) -> Option<&Session> {
        self.sessions.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: SessionKey) -> Option<&mut Session> {
        self.sessions.get_mut(&key)
    }

    pub(super) fn contains(&self, key: SessionKey) -> bool {
        self.sessions.contains_key(&key)
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = SessionKey> + '_ {
        self.sessions.keys().copied()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (SessionKey, &mut Session)> {
        self.sessions.iter_mut().map(|(key, session)| (*key, session))
    }

    /// The sessions for which this is true, in the order of their keys: the same order for the same seed.
    pub(super) fn matching(&self, is: impl Fn(&Session) -> bool) -> Vec<SessionKey> {
        let mut keys: Vec<_> = self.sessions.iter().filter(|(_, session)| is(session)).map(|(key, _)| *key).collect();
        keys.sort();
        keys
    }

    /// An unused session id.
    ///
    /// # Errors
    /// 503, if the system provides no random numbers.
    pub(super) fn draw_key(&mut self) -> Result<SessionKey, Status> {
        loop {
            let drawn = self.ids.draw()?;
            if let Some(key) = drawn.filter(|key| !self.sessions.contains_key(key)) {
                return Ok(key);
            }
        }
    }

    pub(super) fn insert(&mut self, key: SessionKey, session: Session) {
        self.limit.begun(session.peer.ip());
        self.sessions.insert(key, session);
    }

    pub(super) fn remove(&mut self, key: SessionKey) -> Option<Session> {
        let session = self.sessions.remove(&key)?;
        self.sessions.shrink_if_sparse();
        self.limit.ended(session.peer.ip());
        Some(session)
    }
}

impl Index<&SessionKey> for Sessions {
    type Output = Session;

    fn index(&self, key: &SessionKey) -> &Session {
        &self.sessions[key]
    }
}
