//! `auth_url`, `auth_timeout` and `auth_cache`: external authentication.

use std::time::Duration;

use ::url::{Host, Url};

use super::bad_value::BadValue;
use super::bounded;
use super::read::{Faults, Field};
use crate::redact::redact;

/// The server to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthUrl {
    /// The host, a name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path, with the query.
    pub path: String,
    /// Maximum time for an answer.
    pub timeout: Duration,
    /// How long an answer is cached.
    pub cache: Duration,
}

impl AuthUrl {
    /// The host and port for the `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn parse(text: &str) -> Result<AuthUrl, BadValue> {
        let cure = "write \"http://127.0.0.1:9000/auth\"";
        let url = Url::parse(text).map_err(|error| format!("{:?} is not a URL ({error}); {cure}", redact(text)))?;
        if url.scheme() != "http" {
            return Err(format!(
                "{:?} is not http://; {cure}, of a program on this machine, or behind a proxy that adds TLS",
                redact(text)
            )
            .into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("contains a name or password, which is not sent; put the secret into the query".into());
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(format!("{:?} has no host; {cure}", redact(text)).into()),
        };
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let (timeout, cache) = (Duration::from_secs(2), Duration::from_secs(10));
        Ok(AuthUrl { host, port: url.port().unwrap_or(80), path: format!("{}{query}", url.path()), timeout, cache })
    }
}

/// Reads the keys.
pub(super) fn auth_url<'d, 'i: 'd>(
    get: &impl Fn(&'static str) -> Option<Field<'d, 'i>>,
    faults: &mut Faults<'_>,
) -> Option<AuthUrl> {
    let field = get("auth_url");
    for key in ["auth_timeout", "auth_cache"] {
        if let (None, Some(field)) = (&field, get(key)) {
            field.fault(faults, "has no effect without auth_url; add that, or remove the key");
        }
    }
    let field = field?;
    let mut to = field.parsed(faults, "a URL in quotes, such as \"http://127.0.0.1:9000/auth\"", AuthUrl::parse)?;
    if to.path.contains('?') {
        faults.secret(&field);
    }
    if let Some(timeout) = get("auth_timeout").and_then(|field| bounded(&field, faults, 100, 30_000)) {
        to.timeout = timeout;
    }
    if let Some(cache) = get("auth_cache").and_then(|field| bounded(&field, faults, 1_000, 3_600_000)) {
        to.cache = cache;
    }
    Some(to)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, refused};
    use super::*;

    #[test]
    fn the_url_is_taken_apart_or_refused_with_a_cure() {
        let to = |keys: &str| config(keys).site.auth.expect("a URL");
        let read = to("auth_url = \"http://auth.example/a?key=b\"\nauth_cache = \"1m\"");
        assert_eq!((read.host.as_str(), read.port, read.path.as_str()), ("auth.example", 80, "/a?key=b"));
        assert_eq!((read.timeout, read.cache), (Duration::from_secs(2), Duration::from_secs(60)));
        assert_eq!(to("auth_url = \"http://[::1]:9000\"").authority(), "[::1]:9000");
        refused("auth_url = \"https://auth.example/\"", 1, &["auth_url", "http://127.0.0.1"]);
        refused("auth_url = \"auth.example\"", 1, &["not a URL"]);
        refused("auth_url = \"http://a:hunter2@h/\"", 1, &["query"]);
        refused("auth_url = \"http://h/\"\nauth_cache = \"0s\"", 2, &["auth_cache", "1s"]);
        refused("auth_timeout = \"1s\"", 1, &["without auth_url"]);
    }
}
