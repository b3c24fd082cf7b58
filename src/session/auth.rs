//! The users and rights of a server.

use std::net::IpAddr;
use std::sync::Arc;

use crate::access::outside::Outside;
use crate::access::{Access, LOG_TARGET, User};
use crate::limits::{AUTH_FAILURES_MAX, AUTH_FAILURES_OF_ADDRESS_MAX, AUTH_REFUSED_S};

/// The authorities: the relay's own users, and an external server.
#[derive(Default)]
pub(super) struct Authentication {
    /// `None` if no users are configured.
    access: Option<Arc<Access>>,
    outside: Option<Arc<Outside>>,
}

impl Authentication {
    /// Sets the users and their rights; returns the previous ones.
    pub(super) fn set_access(&mut self, access: Option<Arc<Access>>) -> Option<Arc<Access>> {
        std::mem::replace(&mut self.access, access)
    }

    pub(super) fn set_outside(&mut self, outside: Option<Arc<Outside>>) {
        self.outside = outside;
    }

    pub(super) fn access(&self) -> Option<Arc<Access>> {
        self.access.clone()
    }

    pub(super) fn outside(&self) -> Option<Arc<Outside>> {
        self.outside.clone()
    }

    /// Whether users are configured.
    pub(super) fn has_users(&self) -> bool {
        self.access.is_some()
    }

    /// Whether no authentication is needed.
    pub(super) fn is_open(&self) -> bool {
        self.access.is_none() && self.outside.is_none()
    }

    /// Whether `shown`, whose credentials a connection has shown, is `owner`. Without users this is always true.
    pub(super) fn is_same(&self, owner: Option<&Arc<User>>, shown: Option<&Arc<User>>) -> bool {
        self.access.is_none() || owner.map(|user| &user.name) == shown.map(|user| &user.name)
    }
}

/// The user's current definition; `None` if it no longer exists or has another password, which must be shown first.
pub(super) fn current(access: &Access, user: &User) -> Option<Arc<User>> {
    access.user(&user.name).filter(|new| new.secrets == user.secrets).map(Arc::clone)
}

/// Logs wrong credentials in a form that programs read. The line contains nothing that the client sent: an unknown name may be a
/// misplaced password, or crafted text.
pub(crate) fn tell_failure(peer: IpAddr, user: Option<&User>, reason: &str, last: bool) {
    let client = peer.to_canonical();
    let user = user.map_or("-", |user| user.name.as_str());
    tracing::warn!(target: LOG_TARGET, %client, user, reason, "authentication failed");
    if last {
        tracing::warn!(
            target: LOG_TARGET,
            %client,
            user,
            "refused for {AUTH_REFUSED_S} s: {AUTH_FAILURES_MAX} wrong credentials in a row of one user, or {AUTH_FAILURES_OF_ADDRESS_MAX} of all"
        );
    }
}
