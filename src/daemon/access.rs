//! Users on the control thread: passes them to the shards, and authenticates HTTP requests.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::header::AUTHORIZATION;
use tokio::time::sleep_until;
use tracing::warn;

use super::failure::Failure;
use crate::access::{Access, Checked, Guard, Presented, User};
use crate::config::Config;
use crate::metrics::{Counter, process};
use crate::session::tell_failure;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::web::pass::Pass;

/// The current users and rights, against which HTTP requests are checked.
#[derive(Clone)]
pub(super) struct Doors {
    guard: Arc<Guard>,
    /// The secret of its nonces, and when their time began.
    secret: ([u8; 32], Instant),
    access: Rc<RefCell<Option<Arc<Access>>>>,
}

/// How a request without good credentials is handled.
pub(super) enum Entry {
    /// 401 with these challenges, after a delay.
    Asked(Vec<String>, Duration),
    /// Check it again at that time.
    Later(Instant),
    /// 403.
    Closed,
}

impl Doors {
    /// Initially without users.
    ///
    /// # Errors
    /// The system provides no random numbers.
    pub(super) fn new() -> Result<Doors, Failure> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| format!("cannot get random numbers from the system ({error})"))?;
        Ok(Doors::with((secret, Instant::now())))
    }

    /// Those of another process, whose nonces stay valid.
    pub(super) fn with(secret: ([u8; 32], Instant)) -> Doors {
        Doors { guard: Guard::new(&secret.0, secret.1), secret, access: Rc::default() }
    }

    /// The secret of its nonces, and how long ago their time began, in nanoseconds.
    pub(super) fn secret(&self) -> ([u8; 32], u64) {
        (self.secret.0, self.secret.1.elapsed().as_nanos() as u64)
    }

    /// Applies the users of a configuration, here and in the shards.
    pub(super) fn set(&self, config: &Config, shards: &[ShardSender]) {
        let users = config.users.clone();
        let new = || Access::new(users, config.basic, config.testing.nonce_lifetime(), Arc::clone(&self.guard));
        let access = (!config.users.is_empty()).then(new);
        for shard in shards {
            shard.tell(ToShard::Access(access.clone()));
        }
        *self.access.borrow_mut() = access;
    }

    /// The user of a request, by its `Authorization`; `None` if there are no users. Credentials that have to wait for their turn are waited for.
    ///
    /// # Errors
    /// How to handle a request without good credentials.
    pub(super) async fn user<B>(&self, peer: IpAddr, request: &Request<B>) -> Result<Option<Arc<User>>, Entry> {
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let url = request.uri().path_and_query().map_or("/", |url| url.as_str());
        let method = request.method().as_str();
        self.in_turn(
            |access, now, waited| {
                access.check(now, &Presented { peer, method, url, authorization, known: None, waited })
            },
            peer,
        )
        .await
    }

    /// The user with this name and password; `None` if there are no users.
    ///
    /// # Errors
    /// As [`Doors::user`].
    pub(super) async fn login(&self, peer: IpAddr, typed: (&str, &str)) -> Result<Option<Arc<User>>, Entry> {
        self.in_turn(|access, now, waited| access.check_login(now, peer, typed, waited), peer).await
    }

    /// Checks, and once more at the time when the check says that it is its turn.
    async fn in_turn(
        &self,
        check: impl Fn(&Access, Instant, bool) -> Checked,
        peer: IpAddr,
    ) -> Result<Option<Arc<User>>, Entry> {
        let once = |waited| {
            let access = self.access.borrow().clone();
            let Some(access) = access else { return Ok(None) };
            let now = Instant::now();
            judged(&access, now, peer, check(&access, now, waited)).map(Some)
        };
        match once(false) {
            Err(Entry::Later(at)) => {
                sleep_until(at.into()).await;
                once(true)
            }
            at_once => at_once,
        }
    }

    /// Whether there are users, and if so whether they may use Basic authentication.
    pub(super) fn basic(&self) -> Option<bool> {
        self.access.borrow().as_ref().map(|access| access.is_basic())
    }

    /// What a user that was let in is now; `None` if there is no such user any more, or it has another password.
    pub(super) fn current(&self, was: &User) -> Option<Arc<User>> {
        let access = self.access.borrow().clone()?;
        access.user(&was.name).filter(|user| user.secrets == was.secrets).map(Arc::clone)
    }

    /// What a browser shows in place of a password, with its user, if it is good.
    pub(super) fn pass(&self, peer: IpAddr, text: &str, unix_s: u64) -> Option<(Pass, Arc<User>)> {
        let access = self.access.borrow().clone()?;
        let opened = Pass::open(text, unix_s, |name| access.user(name).map(Arc::clone));
        opened.filter(|(_, user)| user.may_come_from(peer))
    }
}

/// The user, or how to handle a request without valid credentials.
fn judged(access: &Access, now: Instant, peer: IpAddr, checked: Checked) -> Result<Arc<User>, Entry> {
    let stale = match checked {
        Checked::Granted(user) => return Ok(user),
        Checked::Later(at) => return Err(Entry::Later(at)),
        Checked::Refused => {
            process::count(Counter::AuthRefused);
            return Err(Entry::Closed);
        }
        Checked::Wrong { user, reason, last } => {
            process::count(Counter::AuthFailed);
            tell_failure(peer, user.as_deref(), reason, last);
            let delay = Duration::from_millis(crate::limits::AUTH_DELAY_MS);
            return Err(Entry::Asked(access.challenges(now, peer, false), delay));
        }
        Checked::Stale { .. } => true,
        Checked::Missing => false,
    };
    Err(Entry::Asked(access.challenges(now, peer, stale), Duration::ZERO))
}

/// Logs a warning if anyone who can connect may watch, or see who watches, given the addresses served and `http`.
pub(super) fn warn_if_open(config: &Config, addresses: &[SocketAddr], http: Option<SocketAddr>) {
    if !config.users.is_empty() {
        return;
    }
    let is_asked = config.site.auth.is_some();
    let is_open = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
    if let Some(address) = http.filter(is_open) {
        warn!(
            "http = \"{address}\" shows clients' addresses to anyone who can connect; add [[user]], or use 127.0.0.1"
        );
    }
    if let Some(address) = addresses.iter().find(|address| is_open(address) && !is_asked) {
        warn!(
            "no [[user]] is configured: anyone who can connect to {address} may watch every stream; add users, or listen on 127.0.0.1"
        );
    }
}
