//! Why a SETUP is answered 461 (RFC 2326 section 11.3.14). Most players only tell their users that it failed, so the log has the
//! reason.

use std::fmt;

use crate::limits::CLIENT_PORT_MIN;
use crate::wire::transport::{Lower, Spec};

/// The reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTransport {
    /// None of the transports is RTP over TCP or UDP.
    Unknown,
    /// Multicast for a stream without a group, or not for this track.
    NoGroup,
    /// UDP requested on an encrypted connection.
    Encrypted,
    /// UDP without the client's ports.
    NoPorts,
    /// UDP, which this relay does not use.
    NoDatagrams,
    /// The session's other tracks use another transport.
    Mixed,
    /// `mode=record` of a player.
    Records,
    /// All channels of the connection are in use.
    NoChannels,
    /// Ports below [`CLIENT_PORT_MIN`].
    LowPorts,
    /// Another track of the session has these ports.
    OwnTrack,
    /// Ports that another client's session or the relay itself uses.
    Taken,
}

impl NoTransport {
    /// Why none of the transports that a player offers is accepted. `encrypted` is whether the connection uses TLS, `group` whether the
    /// stream has a multicast group, `datagrams` whether the relay sends any, `other` whether the session has another transport.
    pub(super) fn of(offered: &[Spec], encrypted: bool, group: bool, datagrams: bool, other: bool) -> NoTransport {
        let udp = |spec: &&Spec| spec.lower == Some(Lower::Udp);
        if offered.iter().all(|spec| spec.lower.is_none()) {
            return NoTransport::Unknown;
        }
        if !offered.iter().any(|spec| spec.lower.is_some() && spec.plays()) {
            return NoTransport::Records;
        }
        if encrypted && offered.iter().any(|spec| udp(&spec)) {
            return NoTransport::Encrypted;
        }
        if !group && offered.iter().any(|spec| udp(&spec) && spec.multicast) {
            return NoTransport::NoGroup;
        }
        if other {
            return NoTransport::Mixed;
        }
        if datagrams { NoTransport::NoPorts } else { NoTransport::NoDatagrams }
    }
}

impl fmt::Display for NoTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoTransport::Unknown => f.write_str("only RTP/AVP, RTP/AVP/UDP and RTP/AVP/TCP are served"),
            NoTransport::NoGroup => {
                f.write_str("the stream has no multicast group; set stream.multicast, or let the player use TCP or UDP")
            }
            NoTransport::Encrypted => f.write_str(
                "over RTSPS media are sent only in the connection, because UDP would not be encrypted; let the player use TCP",
            ),
            NoTransport::NoPorts => f.write_str("UDP without client_port, or with ports that do not exist"),
            NoTransport::NoDatagrams => f.write_str("this relay sends no UDP; let the player use TCP"),
            NoTransport::Mixed => f.write_str("the session's other tracks have another transport, and a session has one"),
            NoTransport::Records => f.write_str("mode=record without ANNOUNCE; a publisher announces the stream first"),
            NoTransport::NoChannels => f.write_str("the connection has no free channel"),
            NoTransport::LowPorts => {
                write!(f, "client_port below {CLIENT_PORT_MIN}: those ports belong to other services; let the player use TCP")
            }
            NoTransport::OwnTrack => f.write_str("another track of the session has these ports"),
            NoTransport::Taken => f.write_str(
                "the ports are used by another session from the same address, or by the relay; let the player use TCP",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::transport::parse;

    #[test]
    fn each_offer_is_refused_for_its_own_reason() {
        let of =
            |offered: &str, encrypted, group, other| NoTransport::of(&parse(offered), encrypted, group, true, other);
        let ports = "RTP/AVP;unicast;client_port=5000-5001";
        assert_eq!(of("RTP/SAVP;unicast;client_port=5000-5001", false, false, false), NoTransport::Unknown);
        assert_eq!(of("RTP/AVP;multicast", false, false, false), NoTransport::NoGroup);
        assert_eq!(of("RTP/AVP;multicast", false, true, true), NoTransport::Mixed);
        assert_eq!(of(ports, true, false, false), NoTransport::Encrypted);
        assert_eq!(of(ports, false, false, true), NoTransport::Mixed);
        assert_eq!(of("RTP/AVP;unicast;client_port=65535", false, false, false), NoTransport::NoPorts);
        assert_eq!(of("RTP/AVP/TCP;interleaved=0-1;mode=record", false, false, false), NoTransport::Records);
        assert_eq!(NoTransport::of(&parse(ports), false, false, false, false), NoTransport::NoDatagrams);
    }
}
