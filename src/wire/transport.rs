//! The `Transport` header (RFC 2326 section 12.39).

use std::fmt;
use std::net::SocketAddr;

/// What carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lower {
    /// The control connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// One of the transports that a client offers, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Protocol and profile as spelled: `RTP/AVP`, `RTP/AVP/UDP`, `RTP/AVP/TCP`.
    pub protocol: String,
    /// What carries the packets; `None` for an unknown protocol or profile.
    pub lower: Option<Lower>,
    /// Whether `multicast` is requested. Without either word it is unicast, because that is what clients mean.
    pub multicast: bool,
    /// The requested channels for RTP and RTCP; if there is only one number, the second is the next one.
    pub interleaved: Option<(u8, u8)>,
    /// The client's ports for RTP and RTCP; if there is only one number, the second is the next one.
    pub client_port: Option<(u16, u16)>,
    /// In a response, the server's ports for RTP and RTCP; if there is only one number, the second is the next one.
    pub server_port: Option<(u16, u16)>,
    /// The mode, without quotes (`PLAY`, `RECORD`), as spelled.
    pub mode: Option<String>,
    /// The SSRC.
    pub ssrc: Option<u32>,
}

impl Spec {
    /// Whether the mode is PLAY, which is the default.
    pub fn plays(&self) -> bool {
        self.mode.as_deref().is_none_or(|mode| mode.eq_ignore_ascii_case("play"))
    }
}

/// Splits at `separator` outside of double quotes.
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .map(str::trim)
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches('"').trim()
}

/// `a-b`, or `a` and the next number.
fn pair<T>(value: &str, next: impl Fn(T) -> Option<T>) -> Option<(T, T)>
where
    T: std::str::FromStr + Copy,
{
    match value.split_once('-') {
        Some((a, b)) => Some((a.trim().parse().ok()?, b.trim().parse().ok()?)),
        None => {
            let a: T = value.parse().ok()?;
            Some((a, next(a)?))
        }
    }
}

/// Parses a header's list of transports. Invalid parameters count as absent; unknown ones are ignored.
pub fn parse(value: &str) -> Vec<Spec> {
    split_unquoted(value, ',').filter(|spec| !spec.is_empty()).map(parse_one).collect()
}

fn parse_one(text: &str) -> Spec {
    let mut parts = split_unquoted(text, ';');
    let protocol = parts.next().unwrap_or_default().to_owned();
    let mut spec = Spec {
        lower: match protocol.to_ascii_uppercase().as_str() {
            "RTP/AVP" | "RTP/AVP/UDP" => Some(Lower::Udp),
            "RTP/AVP/TCP" => Some(Lower::Tcp),
            _ => None,
        },
        protocol,
        multicast: false,
        interleaved: None,
        client_port: None,
        server_port: None,
        mode: None,
        ssrc: None,
    };
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value = unquoted(value);
        match name.trim().to_ascii_lowercase().as_str() {
            "multicast" => spec.multicast = true,
            "interleaved" => spec.interleaved = pair(value, |a: u8| a.checked_add(1)),
            "client_port" => {
                spec.client_port = pair(value, |a: u16| a.checked_add(1)).filter(|(rtp, rtcp)| *rtp != 0 && *rtcp != 0)
            }
            "server_port" => {
                let next = |a: u16| a.checked_add(1);
                // A second number without the first is useless, and vice versa.
                spec.server_port = pair(value, next)
                    .or_else(|| pair(value.split('-').next()?.trim(), next))
                    .filter(|(rtp, rtcp)| *rtp != 0 && *rtcp != 0)
            }
            "mode" if !value.is_empty() => spec.mode = Some(value.to_owned()),
            "ssrc" => spec.ssrc = u32::from_str_radix(value, 16).ok(),
            // This includes `destination` and `source`: media is sent only to the address of the RTSP connection.
            _ => {}
        }
    }
    // `RTP/AVP` with channels and without ports can only mean interleaved.
    if spec.lower == Some(Lower::Udp) && spec.interleaved.is_some() && spec.client_port.is_none() {
        spec.lower = Some(Lower::Tcp);
    }
    spec
}

/// The transport in the answer to SETUP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// In the control connection.
    Interleaved {
        /// In the client's spelling.
        protocol: &'a str,
        /// RTP and RTCP.
        channels: (u8, u8),
        /// The track's.
        ssrc: u32,
    },
    /// As datagrams.
    Udp {
        /// In the client's spelling.
        protocol: &'a str,
        /// The client's ports for RTP and RTCP.
        client_port: (u16, u16),
        /// The server's.
        server_port: (u16, u16),
        /// The track's.
        ssrc: u32,
    },
    /// As datagrams to a group.
    Multicast {
        /// In the client's spelling.
        protocol: &'a str,
        /// The group with the port for RTP; RTCP uses the next one.
        rtp: SocketAddr,
        /// The number of routers that a packet may pass.
        ttl: u8,
        /// The track's.
        ssrc: u32,
    },
}

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Interleaved { protocol, channels: (rtp, rtcp), ssrc } => {
                write!(f, "{protocol};unicast;interleaved={rtp}-{rtcp};ssrc={ssrc:08X}")
            }
            Answer::Udp { protocol, client_port: (a, b), server_port: (c, d), ssrc } => {
                write!(f, "{protocol};unicast;client_port={a}-{b};server_port={c}-{d};ssrc={ssrc:08X}")
            }
            Answer::Multicast { protocol, rtp, ttl, ssrc } => {
                let (group, a) = (rtp.ip(), rtp.port());
                let b = a + 1;
                write!(f, "{protocol};multicast;destination={group};port={a}-{b};ttl={ttl};ssrc={ssrc:08X}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Spec {
        let mut specs = parse(text);
        assert_eq!(specs.len(), 1, "{specs:?}");
        specs.remove(0)
    }

    #[test]
    fn what_players_send_is_understood() {
        // ffmpeg, GStreamer, live555, and a player that offers a list.
        let spec = one("RTP/AVP/TCP;unicast;interleaved=0-1");
        assert_eq!((spec.lower, spec.interleaved), (Some(Lower::Tcp), Some((0, 1))));
        let spec = one("RTP/AVP/UDP;unicast;client_port=5000-5001");
        assert_eq!((spec.lower, spec.client_port), (Some(Lower::Udp), Some((5000, 5001))));
        let spec = one("RTP/AVP;unicast;client_port=49152-49153;mode=\"PLAY\"");
        assert_eq!((spec.lower, spec.plays(), spec.multicast), (Some(Lower::Udp), true, false));
        let specs = parse(
            "RTP/AVP;multicast;destination=\"224.0.0.1,5\";mode=\"PLAY,RECORD\", RTP/AVP/TCP ; interleaved = 4-5",
        );
        assert_eq!(specs.len(), 2);
        assert!(specs[0].multicast && !specs[0].plays());
        assert_eq!((specs[1].lower, specs[1].interleaved), (Some(Lower::Tcp), Some((4, 5))));
    }

    #[test]
    fn single_numbers_and_spellings_are_taken() {
        assert_eq!(one("RTP/AVP/TCP;unicast;interleaved=6").interleaved, Some((6, 7)));
        assert_eq!(one("rtp/avp;UNICAST;Client_Port=7000").client_port, Some((7000, 7001)));
        assert_eq!(one("RTP/AVP;unicast;ssrc= 0A0b0C0d ;client_port=1-2").ssrc, Some(0x0a0b_0c0d));
        assert_eq!(one("RTP/AVP;unicast;interleaved=0-1").lower, Some(Lower::Tcp));
        assert!(one("RTP/AVP;unicast;mode=play").plays());
        assert!(!one("RTP/AVP;unicast;mode=record").plays());
    }

    #[test]
    fn nonsense_counts_as_absent() {
        assert_eq!(one("RTP/AVP/TCP;interleaved=300-301").interleaved, None);
        assert_eq!(one("RTP/AVP/TCP;interleaved=255").interleaved, None);
        assert_eq!(one("RTP/AVP/TCP;interleaved").interleaved, None);
        assert_eq!(one("RTP/AVP;client_port=-1-0").client_port, None);
        assert_eq!(one("RTP/AVP;client_port=0-1").client_port, None);
        assert_eq!(one("RTP/AVP;client_port=65535").client_port, None);
        assert_eq!(one("RTP/SAVP;unicast;client_port=1-2").lower, None);
        assert_eq!(one("RAW/RAW/UDP;unicast").lower, None);
        assert_eq!(parse(""), []);
        assert_eq!(parse(" , ,"), []);
        assert_eq!(one("\"RTP/AVP;,").lower, None);
    }

    #[test]
    fn an_answer_says_all_that_the_client_needs() {
        let answer = Answer::Interleaved { protocol: "RTP/AVP/TCP", channels: (2, 3), ssrc: 0xab };
        assert_eq!(answer.to_string(), "RTP/AVP/TCP;unicast;interleaved=2-3;ssrc=000000AB");
        let answer = Answer::Udp { protocol: "RTP/AVP", client_port: (1, 2), server_port: (3, 4), ssrc: 5 };
        assert_eq!(answer.to_string(), "RTP/AVP;unicast;client_port=1-2;server_port=3-4;ssrc=00000005");
        let back = one(&answer.to_string());
        assert_eq!((back.client_port, back.ssrc), (Some((1, 2)), Some(5)));
    }
}
