//! Sessions of browsers: like those of interleaved players, but not created by requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::auth::current;
use super::server::Server;
use super::sessions::{NewSession, SetUp};
use super::streams::own;
use super::types::{ConnId, Delivery, Event};
use crate::access::{Right, User};
use crate::media::{StreamId, TrackId};
use crate::wire::rtsp::Status;
use crate::wire::transport::Lower;

impl Server {
    /// The client of a connection is identified by what it has shown to the HTTP server: its user, if users are configured.
    pub fn web_client(&mut self, now: Instant, conn: ConnId, user: Option<Arc<User>>) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.user = user;
            connection.note_heard(now);
        }
    }

    /// How long a browser must wait for a stream that sleeps or has never been up; `None` if it need not wait.
    pub fn web_wait(&mut self, now: Instant, stream: StreamId) -> Option<Duration> {
        self.ask(now, stream);
        self.streams.wait_for(stream)
    }

    /// A browser that waits for a stream wants it, or no longer does.
    pub fn web_wants(&mut self, stream: StreamId, wanted: bool) {
        self.want(stream, wanted);
    }

    /// Creates a session in which a browser receives these tracks. An [`Event::Play`] follows.
    ///
    /// # Errors
    /// 403 if its user has no right to the stream, 453 if the limit of sessions is reached, 503 if the stream has never been up.
    pub fn web_session(
        &mut self,
        now: Instant,
        conn: ConnId,
        stream: StreamId,
        tracks: &[TrackId],
        user_agent: Option<&str>,
    ) -> Result<(), u16> {
        // A reload since the page's request may have taken the right away.
        if let (Some(access), Some(connection)) = (self.auth.access(), self.connections.get(conn)) {
            let user = connection.user.as_ref().and_then(|shown| current(&access, shown));
            let may = |user: Arc<User>| {
                user.may(Right::Read, self.streams.name(stream)) && user.may_come_from(connection.peer.ip())
            };
            if !user.is_some_and(may) {
                return Err(Status::FORBIDDEN.0);
            }
        }
        self.room_for_session(conn, false).map_err(|status| status.0)?;
        let description = self.streams.description(stream).map(Arc::clone).ok_or(Status::UNAVAILABLE.0)?;
        let peer = self.connections.get(conn).map(|connection| connection.peer).ok_or(Status::NOT_FOUND.0)?;
        let key = self.sessions.draw_key().map_err(|status| status.0)?;
        let new = NewSession { peer, stream, description, lower: Lower::Tcp, conn, publishes: false };
        self.insert_session(key, &new, now);
        for &track in tracks {
            let (rtp_channel, rtcp_channel) = own(track);
            let delivery = Delivery::Interleaved { rtp_channel, rtcp_channel };
            self.add_track(key, SetUp { track, delivery, url: String::new(), discarded: false });
        }
        let Some(session) = self.sessions.get_mut(key) else { return Err(Status::SESSION_NOT_FOUND.0) };
        session.ask();
        if let Some(agent) = user_agent {
            session.set_user_agent(agent);
        }
        let tracks = session.play_tracks();
        self.push(Event::Play { session: key, conn, stream, tracks, resumed: false });
        Ok(())
    }
}
