//! Users on the control thread: the shards are told of them, and the HTTP server asks them.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::access::{Access, Checked, Guard, Presented};
use crate::config::Config;
use crate::metrics::{Counter, process};
use crate::session::tell_failure;
use crate::shard::inbox::{ShardSender, ToShard};

/// Who may do what at present; what HTTP requests are judged by.
#[derive(Clone)]
pub struct Doors {
    guard: Arc<Guard>,
    access: Rc<RefCell<Option<Arc<Access>>>>,
}

/// What is done with a request for a page.
pub enum Entry {
    /// It is answered.
    Open,
    /// 401 with these challenges, after so long.
    Asked(Vec<String>, Duration),
    /// 403.
    Closed,
}

impl Doors {
    /// Nobody is asked yet.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn new() -> Result<Doors, String> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| format!("the system gives no random numbers ({error})"))?;
        Ok(Doors { guard: Guard::new(&secret, Instant::now()), access: Rc::default() })
    }

    /// Takes over the users of a configuration, here and in the shards.
    pub fn set(&self, config: &Config, shards: &[ShardSender]) {
        let users = config.users.clone();
        let new = || Access::new(users, config.basic, config.test_nonce_lifetime, Arc::clone(&self.guard));
        let access = (!config.users.is_empty()).then(new);
        for shard in shards {
            shard.tell(ToShard::Access(access.clone()));
        }
        *self.access.borrow_mut() = access;
    }

    /// Whether a page of the HTTP server, which tells of every stream, is for this client. Anybody's, where there are no users.
    pub fn entry(&self, peer: IpAddr, method: &str, url: &str, authorization: Option<&str>) -> Entry {
        let access = self.access.borrow().clone();
        let Some(access) = access else { return Entry::Open };
        let now = Instant::now();
        let stale = match access.check(now, &Presented { peer, method, url, authorization, known: None }) {
            Checked::Granted(user) if user.may_read_all() => return Entry::Open,
            Checked::Granted(_) => return Entry::Closed,
            Checked::Refused => {
                process::count(Counter::AuthRefused);
                return Entry::Closed;
            }
            Checked::Wrong { user, reason, last } => {
                process::count(Counter::AuthFailed);
                tell_failure(peer, user.as_deref(), reason, last);
                let delay = Duration::from_millis(crate::limits::AUTH_DELAY_MS);
                return Entry::Asked(access.challenges(now, peer, false), delay);
            }
            Checked::Stale { .. } => true,
            Checked::Missing => false,
        };
        Entry::Asked(access.challenges(now, peer, stale), Duration::ZERO)
    }
}

/// Says so when anybody who reaches the relay may watch, or see who does; it serves at these addresses, and `http`.
pub fn warn_if_open(config: &Config, addresses: &[SocketAddr], http: Option<SocketAddr>) {
    if !config.users.is_empty() {
        return;
    }
    let is_open = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
    if let Some(address) = http.filter(is_open) {
        warn!(
            "http = \"{address}\" shows everybody who reaches it the clients' addresses; add [[user]], or use 127.0.0.1"
        );
    }
    if let Some(address) = addresses.iter().find(|address| is_open(address)) {
        warn!(
            "no [[user]] is configured: whoever reaches {address} may watch every stream; add users, or listen at 127.0.0.1"
        );
    }
}
