//! Asks an external server whether a client may have a stream (`auth_url`).
//!
//! Shards check here once for each DESCRIBE, SETUP and ANNOUNCE, never for media. An unknown answer is queried, and the request is
//! checked again a little later. All shards share the answers, which are cached for seconds, so that a session costs one query.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Right;
use crate::limits::{OUTSIDE_GRANT_S, OUTSIDE_KNOWN_MAX, OUTSIDE_LOOK_MS, OUTSIDE_PENDING_MAX, OUTSIDE_UNANSWERED_S};

/// A query: what a client wants.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The user: the authenticated one, or if the relay has no users, the name that the client sent.
    pub user: Option<String>,
    /// The password that the client sent with that name, for the server to check; never one that the relay has checked itself.
    pub password: Option<String>,
    /// The client's address.
    pub address: IpAddr,
    /// The stream's name.
    pub stream: String,
    /// The requested action.
    pub action: Right,
    /// The URL's query string, which may contain a token.
    pub query: String,
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither the password nor a token.
        write!(f, "{:?} {} {} {}", self.user, self.address, self.action.name(), self.stream)
    }
}

/// The answer to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 200.
    May,
    /// 401: the client should authenticate.
    Unknown,
    /// Any other answer.
    MayNot,
    /// No answer in time, or too many queries.
    Unanswered,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is known.
    Known(Verdict),
    /// The query was sent; check again at that time.
    Again(Instant),
}

#[derive(Clone, Copy, Debug)]
enum Known {
    /// The deadline; after it there will be no answer.
    Pending(Instant),
    /// Good until then.
    Answered(Verdict, Instant),
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<Question, Known>,
    pending: usize,
    /// Connections that were granted access, until when: their further requests need not repeat the token.
    granted: HashMap<(SocketAddr, String, Right), Instant>,
    timeout: Duration,
    keep: Duration,
}

/// The cache, shared by all shards.
#[derive(Debug)]
pub struct Outside {
    state: Mutex<State>,
    ask: mpsc::UnboundedSender<Question>,
}

impl Outside {
    /// Queries go out through `ask`; the receiver calls [`Outside::answered`] for each within `timeout`. Answers are valid for `keep`.
    pub fn new(timeout: Duration, keep: Duration, ask: mpsc::UnboundedSender<Question>) -> Outside {
        Outside { state: Mutex::new(State { timeout, keep, ..State::default() }), ask }
    }

    /// Whether the client at `peer` may have what it wants.
    pub fn look(&self, now: Instant, peer: SocketAddr, question: &Question) -> Look {
        let mut state = self.state();
        let connection = (peer, question.stream.clone(), question.action);
        if state.granted.get(&connection).is_some_and(|until| *until > now) {
            return Look::Known(Verdict::May);
        }
        match state.known.get(question).copied() {
            Some(Known::Answered(verdict, until)) if until > now => {
                if verdict == Verdict::May {
                    state.grant(now, connection);
                }
                return Look::Known(verdict);
            }
            Some(Known::Pending(until)) if until > now => {
                return Look::Again(now + Duration::from_millis(OUTSIDE_LOOK_MS));
            }
            // The server does not answer: it is not asked again at once.
            Some(Known::Pending(_)) => {
                state.put(now, question.clone(), Verdict::Unanswered);
                return Look::Known(Verdict::Unanswered);
            }
            _ => {}
        }
        if state.pending >= OUTSIDE_PENDING_MAX || !state.has_room(now) || self.ask.send(question.clone()).is_err() {
            return Look::Known(Verdict::Unanswered);
        }
        state.pending += 1;
        // The task that sends the query has the same timeout, and ends it first.
        let until = now + state.timeout + Duration::from_secs(1);
        state.known.insert(question.clone(), Known::Pending(until));
        Look::Again(now + Duration::from_millis(OUTSIDE_LOOK_MS))
    }

    /// A question has been answered.
    pub fn answered(&self, now: Instant, question: Question, verdict: Verdict) {
        self.state().put(now, question, verdict);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, now: Instant, question: Question, verdict: Verdict) {
        let keep = if verdict == Verdict::Unanswered { Duration::from_secs(OUTSIDE_UNANSWERED_S) } else { self.keep };
        if let Some(Known::Pending(_)) = self.known.insert(question, Known::Answered(verdict, now + keep)) {
            self.pending -= 1;
        }
    }

    fn grant(&mut self, now: Instant, connection: (SocketAddr, String, Right)) {
        if self.granted.len() >= OUTSIDE_KNOWN_MAX {
            self.granted.retain(|_, until| *until > now);
        }
        if self.granted.len() < OUTSIDE_KNOWN_MAX {
            self.granted.insert(connection, now + Duration::from_secs(OUTSIDE_GRANT_S));
        }
    }

    /// Whether one more entry fits; removes expired ones.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.known.len() >= OUTSIDE_KNOWN_MAX {
            self.known.retain(|_, known| match known {
                Known::Pending(_) => true,
                Known::Answered(_, until) => *until > now,
            });
        }
        if self.known.len() >= OUTSIDE_KNOWN_MAX {
            // Any number of queries from unauthenticated clients must not keep out those that have access.
            self.known.retain(|_, known| matches!(known, Known::Pending(_) | Known::Answered(Verdict::May, _)));
        }
        self.known.len() < OUTSIDE_KNOWN_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(10);
    const TIMEOUT: Duration = Duration::from_secs(2);

    fn question(query: &str) -> Question {
        let (address, stream) = ("192.0.2.7".parse().unwrap(), "front".to_owned());
        Question { user: None, password: None, address, stream, action: Right::Read, query: query.into() }
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 7], port))
    }

    fn outside() -> (Outside, mpsc::UnboundedReceiver<Question>) {
        let (ask, asked) = mpsc::unbounded_channel();
        (Outside::new(TIMEOUT, KEEP, ask), asked)
    }

    #[test]
    fn one_question_is_asked_however_often_it_is_looked_at() {
        let now = Instant::now();
        let (outside, mut asked) = outside();
        for _ in 0..3 {
            assert!(matches!(outside.look(now, peer(1), &question("token=a")), Look::Again(at) if at > now));
        }
        let first = asked.try_recv().unwrap();
        assert!(asked.try_recv().is_err());
        outside.answered(now, first, Verdict::May);
        assert_eq!(outside.look(now, peer(1), &question("token=a")), Look::Known(Verdict::May));
        // Further requests on the connection have no token; on other connections a token is required.
        assert_eq!(outside.look(now + KEEP * 2, peer(1), &question("")), Look::Known(Verdict::May));
        assert!(matches!(outside.look(now, peer(2), &question("")), Look::Again(_)));
        assert_eq!(outside.look(now, peer(2), &question("token=a")), Look::Known(Verdict::May));
        // An answer is valid for seconds.
        assert!(matches!(outside.look(now + KEEP, peer(3), &question("token=a")), Look::Again(_)));
        assert_eq!(asked.try_recv().unwrap().query, "");
        assert_eq!(asked.try_recv().unwrap().query, "token=a");
    }

    #[test]
    fn what_nobody_answers_is_refused_and_asked_again_later() {
        let now = Instant::now();
        let (outside, mut asked) = outside();
        assert!(matches!(outside.look(now, peer(1), &question("")), Look::Again(_)));
        let late = now + TIMEOUT + Duration::from_secs(1);
        assert_eq!(outside.look(late, peer(1), &question("")), Look::Known(Verdict::Unanswered));
        assert_eq!(outside.look(late, peer(1), &question("")), Look::Known(Verdict::Unanswered));
        let later = late + Duration::from_secs(OUTSIDE_UNANSWERED_S);
        assert!(matches!(outside.look(later, peer(1), &question("")), Look::Again(_)));
        outside.answered(later, question(""), Verdict::MayNot);
        assert_eq!(outside.look(later, peer(1), &question("")), Look::Known(Verdict::MayNot));
        drop(asked.try_recv());
        assert_eq!(outside.state().pending, 0);
    }

    #[test]
    fn whoever_asks_about_ever_other_things_makes_nothing_grow() {
        let now = Instant::now();
        let (outside, mut asked) = outside();
        for number in 0..OUTSIDE_PENDING_MAX {
            assert!(matches!(outside.look(now, peer(1), &question(&number.to_string())), Look::Again(_)));
        }
        assert_eq!(outside.look(now, peer(1), &question("more")), Look::Known(Verdict::Unanswered));
        while let Ok(question) = asked.try_recv() {
            outside.answered(now, question, Verdict::May);
        }
        assert_eq!(outside.state().pending, 0);
        let mut number = OUTSIDE_PENDING_MAX;
        let mut fill = |verdict| {
            while outside.state().known.len() < OUTSIDE_KNOWN_MAX {
                outside.answered(now, question(&number.to_string()), verdict);
                number += 1;
            }
        };
        // Refusals are evicted for others, which may be granted.
        fill(Verdict::MayNot);
        assert!(matches!(outside.look(now, peer(1), &question("who may")), Look::Again(_)));
        assert!(outside.state().known.len() <= OUTSIDE_PENDING_MAX + 1);
        fill(Verdict::May);
        assert_eq!(outside.look(now, peer(1), &question("more")), Look::Known(Verdict::Unanswered));
        assert!(matches!(outside.look(now + KEEP, peer(1), &question("more")), Look::Again(_)));
        assert!(outside.state().known.len() <= OUTSIDE_KNOWN_MAX);
    }
}
