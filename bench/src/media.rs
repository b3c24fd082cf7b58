//! The output of the synthetic camera: frames of a given bit rate in RTP packets, a tone, and sender reports.

use std::borrow::Borrow;
use std::sync::Arc;

use base64::Engine as _;

use crate::picture::{FrameTooLarge, Picture};
use rtsprelay::source::stamp::{H264_SEI, Stamp};

/// RTP packets as an interleaved client receives them: for each `$`, channel, length and packet.
#[derive(Clone, Debug, Default)]
pub struct Burst {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Where each packet (without its interleaved header) begins and ends.
    pub spans: Vec<(usize, usize)>,
}

impl Burst {
    /// Appends a packet made of two parts.
    pub fn push(&mut self, channel: u8, head: &[u8], rest: &[u8]) {
        let len = head.len() + rest.len();
        self.bytes.extend_from_slice(&[b'$', channel]);
        self.bytes.extend_from_slice(&(len as u16).to_be_bytes());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(rest);
        self.spans.push((start, start + len));
    }

    /// Reserves room for this many bytes of payload in packets of this size.
    pub fn reserve(&mut self, payload_bytes: usize, packet_bytes: usize) {
        // A few packets more, of the small NAL units; each has 4 bytes of framing, 12 of header and up to 2 of fragmenting.
        let packets = payload_bytes / packet_bytes + 4;
        self.bytes.reserve(payload_bytes + packets * 18);
        self.spans.reserve(packets);
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Gives every packet another channel number.
    pub fn set_channel(&mut self, channel: u8) {
        for &(start, _) in &self.spans {
            self.bytes[start - 3] = channel;
        }
    }

    /// The packets, each without its interleaved header.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().map(|&(start, end)| &self.bytes[start..end])
    }
}

/// One RTP packet stream: an SSRC with its sequence.
#[derive(Clone, Debug)]
pub struct Rtp {
    /// The SSRC.
    pub ssrc: u32,
    /// The next packet's sequence number.
    pub seq: u16,
    /// The RTP timestamp at the stream's beginning.
    pub base_time: u32,
    payload_type: u8,
    /// Packets sent, for sender reports.
    packets: u32,
    /// Payload bytes sent, for sender reports.
    octets: u32,
}

impl Rtp {
    /// A stream with a random SSRC, sequence number and timestamp (RFC 3550 section 5.1).
    pub fn new(payload_type: u8, random: &mut fastrand::Rng) -> Rtp {
        Rtp {
            ssrc: random.u32(..),
            seq: random.u16(..),
            base_time: random.u32(..),
            payload_type,
            packets: 0,
            octets: 0,
        }
    }

    /// Appends one packet.
    fn packet(&mut self, channel: u8, marker: bool, time: u32, prefix: &[u8], payload: &[u8], out: &mut Burst) {
        let mut head = [0u8; 16];
        head[0] = 0x80;
        head[1] = self.payload_type | u8::from(marker) << 7;
        head[2..4].copy_from_slice(&self.seq.to_be_bytes());
        head[4..8].copy_from_slice(&time.to_be_bytes());
        head[8..12].copy_from_slice(&self.ssrc.to_be_bytes());
        head[12..12 + prefix.len()].copy_from_slice(prefix);
        out.push(channel, &head[..12 + prefix.len()], payload);
        self.seq = self.seq.wrapping_add(1);
        self.packets = self.packets.wrapping_add(1);
        self.octets = self.octets.wrapping_add((prefix.len() + payload.len()) as u32);
    }

    /// Appends the packets of one access unit of H.264: single NAL unit packets and FU-A (RFC 6184 sections 5.6 and 5.8).
    pub fn access_unit(
        &mut self,
        channel: u8,
        time: u32,
        nals: &[impl Borrow<Vec<u8>>],
        payload_bytes_max: usize,
        out: &mut Burst,
    ) {
        for (index, nal) in nals.iter().map(Borrow::borrow).enumerate() {
            let last = index + 1 == nals.len();
            if nal.len() <= payload_bytes_max {
                self.packet(channel, last, time, &[], nal, out);
                continue;
            }
            let pieces = nal[1..].chunks(payload_bytes_max - 2);
            let count = pieces.len();
            for (piece_index, piece) in pieces.enumerate() {
                let (start, end) = (piece_index == 0, piece_index + 1 == count);
                let fu = [nal[0] & 0xE0 | 28, u8::from(start) << 7 | u8::from(end) << 6 | nal[0] & 0x1F];
                self.packet(channel, last && end, time, &fu, piece, out);
            }
        }
    }

    /// A sender report with an SDES CNAME (RFC 3550 sections 6.4.1 and 6.5).
    pub fn report(&self, channel: u8, wall_ns: u64, time: u32, out: &mut Burst) {
        let mut text = [0u8; 28];
        text[..4].copy_from_slice(&[0x80, 200, 0, 6]);
        text[4..8].copy_from_slice(&self.ssrc.to_be_bytes());
        // NTP counts from 1900.
        let seconds = (wall_ns / 1_000_000_000 + 2_208_988_800) as u32;
        let fraction = ((wall_ns % 1_000_000_000) << 32) / 1_000_000_000;
        text[8..12].copy_from_slice(&seconds.to_be_bytes());
        text[12..16].copy_from_slice(&(fraction as u32).to_be_bytes());
        text[16..20].copy_from_slice(&time.to_be_bytes());
        text[20..24].copy_from_slice(&self.packets.to_be_bytes());
        text[24..28].copy_from_slice(&self.octets.to_be_bytes());
        let mut sdes = vec![0x81, 202, 0, 0];
        sdes.extend_from_slice(&self.ssrc.to_be_bytes());
        sdes.extend_from_slice(b"\x01\x0cbench@camera\0\0");
        let words = sdes.len() / 4 - 1;
        sdes[3] = words as u8;
        out.push(channel, &text, &sdes);
    }
}

/// Parameters of the video.
#[derive(Clone, Debug)]
pub struct VideoConfig {
    /// Bits a second, without RTP headers.
    pub bitrate: u64,
    /// Frames per second.
    pub fps: f64,
    /// Frames from one keyframe to the next.
    pub gop: u64,
    /// Size of a keyframe relative to another frame.
    pub keyframe_factor: f64,
}

/// The payload type of the video.
pub const VIDEO_PAYLOAD_TYPE: u8 = 96;

/// The synthetic video.
#[derive(Clone)]
pub struct Video {
    config: VideoConfig,
    picture: Picture,
    /// Bytes by which the frames so far fell short of the bit rate.
    owed: f64,
    /// The slices of [`REEL_GOPS`] groups of pictures, if they are shown again and again.
    reel: Option<Arc<Vec<Arc<Vec<u8>>>>>,
}

/// Groups of pictures in a reel. Two, because two IDR pictures in a row must differ in their `idr_pic_id` (H.264 section 7.4.3).
const REEL_GOPS: u64 = 2;

impl Video {
    /// Video as configured, or why that cannot be.
    pub fn new(config: VideoConfig, seed: u64) -> Result<Video, FrameTooLarge> {
        let largest = Video::plain_bytes(&config) * config.keyframe_factor;
        let picture = Picture::new(largest as usize + 4096, seed)?;
        Ok(Video { picture, config, owed: 0.0, reel: None })
    }

    /// The same, with pictures that are generated once and sent repeatedly with new stamps. Its clones share them, so that a frame
    /// costs hundreds of streams no more than its packets.
    pub fn repeated(config: VideoConfig, seed: u64) -> Result<Video, FrameTooLarge> {
        let mut video = Video::new(config, seed)?;
        let frames = 0..REEL_GOPS * video.config.gop;
        let slices = frames.map(|number| video.frame(number, 0).pop().expect("a frame ends with its slice"));
        video.reel = Some(Arc::new(slices.collect()));
        Ok(video)
    }

    /// Bytes of a frame that is no keyframe.
    fn plain_bytes(config: &VideoConfig) -> f64 {
        let per_gop = config.bitrate as f64 / 8.0 * config.gop as f64 / config.fps;
        per_gop / (config.keyframe_factor + config.gop as f64 - 1.0)
    }

    /// Whether frame `number` is a keyframe.
    pub fn is_keyframe(&self, number: u64) -> bool {
        number.is_multiple_of(self.config.gop)
    }

    /// The NAL units of frame `number`, made at `wall_ns`.
    pub fn frame(&mut self, number: u64, wall_ns: u64) -> Vec<Arc<Vec<u8>>> {
        let keyframe = self.is_keyframe(number);
        let stamp = Stamp { frame: number, unix_ns: wall_ns, flags: u32::from(keyframe) };
        let mut sei = Vec::new();
        stamp.write_nal(H264_SEI, &mut sei);
        let mut nals: Vec<Arc<Vec<u8>>> = Vec::with_capacity(4);
        if keyframe {
            nals.extend([Arc::new(self.picture.sps()), Arc::new(self.picture.pps())]);
        }
        nals.push(Arc::new(sei));
        if let Some(reel) = &self.reel {
            nals.push(reel[(number % reel.len() as u64) as usize].clone());
            return nals;
        }
        let factor = if keyframe { self.config.keyframe_factor } else { 1.0 };
        let wanted = Video::plain_bytes(&self.config) * factor + self.owed;
        let used: usize = nals.iter().map(|nal| nal.len()).sum();
        let slice = self.picture.slice(number, keyframe, (wanted as usize).saturating_sub(used));
        self.owed = (wanted - (used + slice.len()) as f64).clamp(-4096.0, 4096.0);
        nals.push(Arc::new(slice));
        nals
    }

    /// The lines of the SDP that describe it, `m=` first.
    pub fn sdp(&self, control: &str) -> String {
        let base64 = base64::engine::general_purpose::STANDARD;
        let (sps, pps) = (self.picture.sps(), self.picture.pps());
        let (width, height) = self.picture.size();
        format!(
            "m=video 0 RTP/AVP {VIDEO_PAYLOAD_TYPE}\r\na=rtpmap:{VIDEO_PAYLOAD_TYPE} H264/90000\r\n\
             a=fmtp:{VIDEO_PAYLOAD_TYPE} packetization-mode=1;profile-level-id={:02x}{:02x}{:02x};\
             sprop-parameter-sets={},{}\r\na=framerate:{}\r\na=framesize:{VIDEO_PAYLOAD_TYPE} {width}-{height}\r\n\
             a=control:{control}\r\n",
            sps[1],
            sps[2],
            sps[3],
            base64.encode(&sps),
            base64.encode(&pps),
            self.config.fps,
        )
    }
}

/// Samples of one audio packet: 20 ms at 8 kHz.
pub const AUDIO_SAMPLES: u32 = 160;

/// Appends 20 ms of a 400 Hz tone as PCMU.
pub fn tone(rtp: &mut Rtp, channel: u8, time: u32, out: &mut Burst) {
    // One period of a quiet sine in mu-law, 20 samples; the first half positive.
    const PERIOD: [u8; 20] = [
        0xFF, 0xC0, 0xB2, 0xAC, 0xA9, 0xA8, 0xA9, 0xAC, 0xB2, 0xC0, 0xFF, 0x40, 0x32, 0x2C, 0x29, 0x28, 0x29, 0x2C,
        0x32, 0x40,
    ];
    let mut samples = [0u8; AUDIO_SAMPLES as usize];
    for (sample, value) in samples.iter_mut().zip(PERIOD.iter().cycle()) {
        *sample = *value;
    }
    rtp.packet(channel, false, time, &[], &samples, out);
}

/// The lines of the SDP that describe the tone.
pub fn audio_sdp(control: &str) -> String {
    format!("m=audio 0 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=control:{control}\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bit_rate_is_met() {
        let config = VideoConfig { bitrate: 4_000_000, fps: 30.0, gop: 30, keyframe_factor: 4.0 };
        let mut video = Video::new(config, 7).unwrap();
        let bytes: usize = (0..300).flat_map(|n| video.frame(n, 0)).map(|nal| nal.len()).sum();
        let rate = bytes as f64 * 8.0 / 10.0;
        assert!((rate / 4_000_000.0 - 1.0).abs() < 0.01, "{rate}");
    }

    #[test]
    fn repeated_pictures_keep_the_bit_rate_and_their_own_stamps() {
        let config = VideoConfig { bitrate: 2_000_000, fps: 25.0, gop: 10, keyframe_factor: 4.0 };
        let mut video = Video::repeated(config, 7).unwrap();
        let mut other = video.clone();
        let bytes: usize = (0..250).flat_map(|n| video.frame(n, 0)).map(|nal| nal.len()).sum();
        let rate = bytes as f64 * 8.0 / 10.0;
        assert!((rate / 2_000_000.0 - 1.0).abs() < 0.02, "{rate}");
        let (first, again) = (video.frame(3, 1), other.frame(23, 2));
        assert!(first[0] != again[0] && Arc::ptr_eq(&first[1], &again[1]));
        // Two keyframes in a row are not the same picture.
        assert_ne!(video.frame(0, 0)[3], video.frame(10, 0)[3]);
    }

    #[test]
    fn packets_are_whole_and_end_with_a_marker() {
        let mut rtp = Rtp::new(96, &mut fastrand::Rng::with_seed(1));
        let first = rtp.seq;
        let mut burst = Burst::default();
        rtp.access_unit(2, 77, &[vec![6; 60], vec![0x41; 5000]], 1400, &mut burst);
        assert_eq!(burst.spans.len(), 5);
        let markers: Vec<bool> = burst.packets().map(|p| p[1] & 0x80 != 0).collect();
        assert_eq!(markers, [false, false, false, false, true]);
        for (index, packet) in burst.packets().enumerate() {
            assert_eq!(u16::from_be_bytes([packet[2], packet[3]]), first.wrapping_add(index as u16));
            assert!(packet.len() <= 12 + 1400);
        }
        let payload: usize = burst.packets().skip(1).map(|p| p.len() - 14).sum();
        assert_eq!(payload, 4999);
        burst.set_channel(9);
        assert!(burst.spans.iter().all(|&(start, _)| burst.bytes[start - 3] == 9));
    }
}
