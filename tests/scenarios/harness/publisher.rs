//! A publisher that does exactly what a scenario tells it to, valid or not.

use std::net::SocketAddr;

use super::rtsp::{Answer, Client};

/// A valid video track.
pub const VIDEO: &str = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n\
    a=fmtp:96 packetization-mode=1;sprop-parameter-sets=Z0LAHtkDxWhAAAADAEAAAAwDxYuS,aMuMsg==\r\na=control:streamid=0\r\n";

/// One that has sent RECORD, over TCP.
pub struct Publisher {
    /// Its connection.
    pub client: Client,
}

impl Publisher {
    /// Announces [`VIDEO`], sets it up and records.
    pub fn start(address: SocketAddr, url: &str) -> Publisher {
        let mut publisher = Publisher { client: Client::connect(address) };
        publisher.announce(url, VIDEO).expect(200);
        publisher.set_up(url, 0, "RTP/AVP/TCP;unicast;interleaved=0-1").expect(200);
        publisher.client.request("RECORD", url, &[]).expect(200);
        publisher
    }

    /// ANNOUNCE of these tracks.
    pub fn announce(&mut self, url: &str, tracks: &str) -> Answer {
        let sdp = format!("v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n{tracks}");
        let length = sdp.len().to_string();
        let headers = [("Content-Type", "application/sdp"), ("Content-Length", length.as_str())];
        let head = self.client.compose("ANNOUNCE", url, &headers);
        self.client.send_raw((head + &sdp).as_bytes());
        self.client.answer()
    }

    /// SETUP of the track with this number; remembers the session.
    pub fn set_up(&mut self, url: &str, track: usize, transport: &str) -> Answer {
        let transport = format!("{transport};mode=record");
        let answer = self.client.request("SETUP", &format!("{url}/streamid={track}"), &[("Transport", &transport)]);
        if let Some(session) = answer.session() {
            self.client.session = Some(session.to_owned());
        }
        answer
    }
}
