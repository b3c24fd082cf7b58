//! The listening sockets: from the service manager, from the relay before, or new.

use std::io;
use std::rc::Rc;

use super::failure::Failure;
use super::fd_store::FdStore;
use super::heir::Heir;
use super::http;
use super::inherited::Inherited;
use super::notify::Notifier;
use super::passed::Listening;
use crate::config::Config;
use crate::egress::Listener;
use crate::upgrade::Purpose;

/// Listeners, and whether they serve by TLS.
pub(super) type Listeners = Vec<(Listener, bool)>;

/// The listening sockets that this process was started with.
pub(super) fn inherited(config: &Config, notifier: &Rc<Notifier>, heir: Option<&mut Heir>) -> Inherited {
    let Some(heir) = heir else { return Inherited::take(config, notifier) };
    let store = FdStore::succeeding(Rc::clone(notifier), heir.addresses());
    Inherited { plain: heir.listeners(Purpose::Rtsp), secured: heir.listeners(Purpose::Rtsps), store }
}

/// The listeners for HTTP and HTTPS, and whether they are by TLS.
pub(super) fn listen_for_pages(
    config: &Config,
    store: &mut FdStore,
    mut heir: Option<&mut Heir>,
) -> Result<Listeners, Failure> {
    let wanted = [(config.http, Purpose::Http, false), (config.http_tls, Purpose::Https, true)];
    let mut listeners = Vec::new();
    for (address, purpose, by_tls) in wanted {
        let Some(address) = address else { continue };
        let listener = match heir.as_deref_mut().and_then(|heir| heir.listeners(purpose).pop()) {
            Some(socket) => {
                Listener::from_std(socket).map_err(|error| format!("an inherited socket cannot be used ({error})"))?
            }
            None => http::bind(store, purpose, address)?,
        };
        listeners.push((listener, by_tls));
    }
    Ok(listeners)
}

/// The listeners for RTSP, and further handles on all sockets for a process that takes over.
///
/// # Errors
/// A listener has no address.
pub(super) fn all(
    plain: Vec<Listener>,
    secured: Vec<Listener>,
    web: &Listeners,
) -> Result<(Listeners, Vec<Listening>), Failure> {
    let secured = secured.into_iter().map(|listener| (listener, true));
    let rtsp: Listeners = plain.into_iter().map(|listener| (listener, false)).chain(secured).collect();
    let listening = handles(&rtsp, web).map_err(|error| format!("a listener has no address ({error})"))?;
    Ok((rtsp, listening))
}

fn handles(rtsp: &Listeners, web: &Listeners) -> io::Result<Vec<Listening>> {
    let rtsp = rtsp.iter().map(|(listener, tls)| (listener, if *tls { Purpose::Rtsps } else { Purpose::Rtsp }));
    let web = web.iter().map(|(listener, tls)| (listener, if *tls { Purpose::Https } else { Purpose::Http }));
    let one = |(listener, purpose): (&Listener, Purpose)| {
        Ok(Listening { purpose, address: listener.local_addr()?, socket: listener.to_owned_fd()? })
    };
    rtsp.chain(web).map(one).collect()
}
