//! RTCP compound packets (RFC 3550 section 6).

use std::time::Duration;

/// Unix time in NTP format: seconds since 1900 in the upper half. Wraps in 2036, as required by RFC 3550 (section 4).
pub fn ntp(since_1970: Duration) -> u64 {
    const SECONDS_1900_TO_1970: u64 = 2_208_988_800;
    let fraction = (u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000;
    since_1970.as_secs().wrapping_add(SECONDS_1900_TO_1970) << 32 | fraction
}

/// Packet type of a sender report.
pub const SENDER_REPORT: u8 = 200;
/// Packet type of a receiver report.
pub const RECEIVER_REPORT: u8 = 201;
/// Packet type of a source description.
pub const SOURCE_DESCRIPTION: u8 = 202;
/// Packet type of a goodbye.
pub const GOODBYE: u8 = 203;

/// The highest packet type allowed in a compound (application-defined; feedback and extended reports, RFC 4585 and 3611).
const LAST_TYPE: u8 = 207;

/// A receiver's report about one source (RFC 3550 section 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportBlock {
    /// The source that the block is about.
    pub ssrc: u32,
    /// Packets lost since the previous report, in 256ths of those expected.
    pub fraction_lost: u8,
    /// Packets lost since the start; negative if there were more duplicates than losses.
    pub lost: i32,
    /// The highest sequence number received, with the cycles in the upper half.
    pub highest_sequence: u32,
    /// Interarrival jitter, in ticks of the payload's clock.
    pub jitter: u32,
    /// The middle 32 bits of the NTP time of the last sender report received; 0 for none.
    pub last_sender_report: u32,
    /// Time since that report, in 65,536ths of a second.
    pub delay: u32,
}

/// One packet of a compound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A sender's report.
    SenderReport {
        /// Who sends.
        ssrc: u32,
        /// The time, in NTP format (RFC 3550 section 4).
        ntp: u64,
        /// The same time in ticks of the payload's clock.
        rtp_time: u32,
        /// Packets sent so far.
        packets: u32,
        /// Payload bytes sent so far.
        octets: u32,
        /// What it receives itself.
        reports: Vec<ReportBlock>,
    },
    /// A receiver's report.
    ReceiverReport {
        /// Who reports.
        ssrc: u32,
        /// On each source.
        reports: Vec<ReportBlock>,
    },
    /// A source description; its items are not parsed.
    SourceDescription,
    /// Sources that leave.
    Goodbye(Vec<u32>),
    /// A packet of another type, skipped.
    Other(u8),
}

/// Why bytes are not an RTCP compound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RTCP at byte {offset}: {kind}")]
pub struct Fault {
    /// Offset of the invalid packet in the compound.
    pub offset: usize,
    /// The error.
    pub kind: FaultKind,
}

/// Why a packet of a compound is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// It claims more bytes than there are.
    #[error("the packet passes the end of the data")]
    Short,
    /// The version is not 2.
    #[error("the version is not 2")]
    Version,
    /// Its content exceeds its own length.
    #[error("the content passes the packet's own length")]
    Content,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn blocks(body: &[u8], count: usize) -> Option<Vec<ReportBlock>> {
    (0..count)
        .map(|index| {
            let at = index * 24;
            let loss = word(body, at + 4)?;
            Some(ReportBlock {
                ssrc: word(body, at)?,
                fraction_lost: (loss >> 24) as u8,
                // The lower 24 bits are a signed number.
                lost: ((loss << 8) as i32) >> 8,
                highest_sequence: word(body, at + 8)?,
                jitter: word(body, at + 12)?,
                last_sender_report: word(body, at + 16)?,
                delay: word(body, at + 20)?,
            })
        })
        .collect()
}

fn content(packet_type: u8, count: usize, body: &[u8]) -> Option<Packet> {
    Some(match packet_type {
        SENDER_REPORT => Packet::SenderReport {
            ssrc: word(body, 0)?,
            ntp: u64::from(word(body, 4)?) << 32 | u64::from(word(body, 8)?),
            rtp_time: word(body, 12)?,
            packets: word(body, 16)?,
            octets: word(body, 20)?,
            reports: blocks(body.get(24..)?, count)?,
        },
        RECEIVER_REPORT => Packet::ReceiverReport { ssrc: word(body, 0)?, reports: blocks(body.get(4..)?, count)? },
        SOURCE_DESCRIPTION => Packet::SourceDescription,
        GOODBYE => Packet::Goodbye((0..count).map(|index| word(body, index * 4)).collect::<Option<_>>()?),
        other => Packet::Other(other),
    })
}

/// Parses a compound packet by packet; stops after the first error.
///
/// A compound need not start with a report (RFC 5506), because some players send theirs in pieces.
pub fn parse(compound: &[u8]) -> impl Iterator<Item = Result<Packet, Fault>> + '_ {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = compound.get(offset..).filter(|rest| !rest.is_empty())?;
        let at = offset;
        offset = compound.len();
        let fault = |kind| Some(Err(Fault { offset: at, kind }));
        if rest[0] >> 6 != 2 {
            return fault(FaultKind::Version);
        }
        let Some(head) = rest.first_chunk::<4>() else { return fault(FaultKind::Short) };
        let len = (usize::from(u16::from_be_bytes([head[2], head[3]])) + 1) * 4;
        let Some(packet) = rest.get(..len) else { return fault(FaultKind::Short) };
        match content(head[1], usize::from(head[0] & 0x1f), &packet[4..]) {
            Some(parsed) => {
                offset = at + len;
                Some(Ok(parsed))
            }
            None => fault(FaultKind::Content),
        }
    })
}

/// Whether the packet type is one of RTCP rather than RTP (RFC 5761 section 4).
fn has_rtcp_type(bytes: &[u8]) -> bool {
    matches!(bytes, [first, SENDER_REPORT..=LAST_TYPE, ..] if first >> 6 == 2)
}

/// Whether bytes are exactly one complete RTCP compound.
pub fn is_compound(bytes: &[u8]) -> bool {
    has_rtcp_type(bytes) && parse(bytes).all(|packet| packet.is_ok())
}

/// Whether a datagram is one that players send to open a router's or firewall's port: from ffmpeg and retina an RTP header without
/// payload, from live555 (in VLC) the four bytes 0xFEEDFACE in either order, from others nothing or zeros.
pub fn is_opening(bytes: &[u8]) -> bool {
    const RTP_HEADER_BYTES: usize = 12;
    const DUMMY: u32 = 0xFEED_FACE;
    let is_dummy = bytes == DUMMY.to_be_bytes() || bytes == DUMMY.to_le_bytes();
    let is_header = bytes.len() == RTP_HEADER_BYTES && bytes[0] >> 6 == 2 && !has_rtcp_type(bytes);
    is_dummy || is_header || bytes.iter().all(|byte| *byte == 0)
}

fn open(out: &mut Vec<u8>, count: u8, packet_type: u8, words: usize) {
    out.extend_from_slice(&[0x80 | count, packet_type]);
    out.extend_from_slice(&(words as u16).to_be_bytes());
}

/// A source description with only the canonical name, truncated to 255 bytes.
fn description(out: &mut Vec<u8>, ssrc: u32, cname: &str) {
    let name = &cname.as_bytes()[..cname.len().min(255)];
    // Source, item type, item length, name, then one to four zeros up to the next word.
    let words = (4 + 2 + name.len()) / 4 + 1;
    open(out, 1, SOURCE_DESCRIPTION, words);
    let end = out.len() + words * 4;
    out.extend_from_slice(&ssrc.to_be_bytes());
    out.extend_from_slice(&[1, name.len() as u8]);
    out.extend_from_slice(name);
    out.resize(end, 0);
}

/// A compound of a sender report without report blocks, and the sender's canonical name.
///
/// `ntp` is in NTP format and `rtp_time` is the same time in ticks; `packets` and `octets` count what was sent so far.
pub fn sender_report(ssrc: u32, ntp: u64, rtp_time: u32, packets: u32, octets: u32, cname: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    open(&mut out, 0, SENDER_REPORT, 6);
    out.extend_from_slice(&ssrc.to_be_bytes());
    out.extend_from_slice(&ntp.to_be_bytes());
    out.extend_from_slice(&rtp_time.to_be_bytes());
    out.extend_from_slice(&packets.to_be_bytes());
    out.extend_from_slice(&octets.to_be_bytes());
    description(&mut out, ssrc, cname);
    out
}

/// Bytes of a sender report before the sender information: its header and the SSRC.
const SENDER_INFO_AT: usize = 8;

/// The sender information of a sender report (RFC 3550 section 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderInfo {
    /// The time, in NTP format.
    pub ntp: u64,
    /// The same time in ticks of the payload's clock.
    pub rtp_time: u32,
    /// Packets sent so far.
    pub packets: u32,
    /// Payload bytes sent so far.
    pub octets: u32,
}

impl SenderInfo {
    /// The sender information, if the compound starts with a sender report.
    pub fn of(compound: &[u8]) -> Option<SenderInfo> {
        match parse(compound).next()?.ok()? {
            Packet::SenderReport { ntp, rtp_time, packets, octets, .. } => {
                Some(SenderInfo { ntp, rtp_time, packets, octets })
            }
            _ => None,
        }
    }

    /// `compound` with this sender information instead of its own; `None` if it does not start with a sender report.
    pub fn put_into(self, compound: &[u8]) -> Option<Vec<u8>> {
        SenderInfo::of(compound)?;
        let mut out = compound.to_vec();
        let info = out.get_mut(SENDER_INFO_AT..SENDER_INFO_AT + 20)?;
        info[..8].copy_from_slice(&self.ntp.to_be_bytes());
        info[8..12].copy_from_slice(&self.rtp_time.to_be_bytes());
        info[12..16].copy_from_slice(&self.packets.to_be_bytes());
        info[16..].copy_from_slice(&self.octets.to_be_bytes());
        Some(out)
    }
}

/// A compound of a receiver report with these blocks, at most 31, and the receiver's canonical name.
pub fn receiver_report(ssrc: u32, reports: &[ReportBlock], cname: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + reports.len() * 24);
    let reports = &reports[..reports.len().min(31)];
    open(&mut out, reports.len() as u8, RECEIVER_REPORT, 1 + reports.len() * 6);
    out.extend_from_slice(&ssrc.to_be_bytes());
    for report in reports {
        out.extend_from_slice(&report.ssrc.to_be_bytes());
        let lost = report.lost.clamp(-0x80_0000, 0x7f_ffff) as u32 & 0xff_ffff;
        for word in [
            u32::from(report.fraction_lost) << 24 | lost,
            report.highest_sequence,
            report.jitter,
            report.last_sender_report,
            report.delay,
        ] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }
    description(&mut out, ssrc, cname);
    out
}

/// A compound with a BYE: an empty receiver report, the canonical name, the BYE (RFC 3550 section 6.1).
pub fn bye(ssrc: u32, cname: &str) -> Vec<u8> {
    let mut out = receiver_report(ssrc, &[], cname);
    open(&mut out, 1, GOODBYE, 1);
    out.extend_from_slice(&ssrc.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(compound: &[u8]) -> Vec<Packet> {
        parse(compound).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_receiver_report_is_read_back() {
        let block = |ssrc: u32, lost: i32| ReportBlock {
            ssrc,
            fraction_lost: 3,
            lost,
            highest_sequence: 0x0001_0002,
            jitter: 7,
            last_sender_report: 9,
            delay: 11,
        };
        let reports = vec![block(5, -2), block(6, 0x7f_ffff)];
        let compound = receiver_report(1, &reports, "name");
        let expected = [Packet::ReceiverReport { ssrc: 1, reports }, Packet::SourceDescription];
        assert_eq!(packets(&compound), expected);
        assert_eq!(packets(&receiver_report(1, &vec![block(1, 0); 40], "n")).len(), 2);
    }

    #[test]
    fn a_sender_report_is_read_back_whatever_the_length_of_the_name() {
        for len in 0..300 {
            let name = "n".repeat(len);
            let compound = sender_report(1, 0x0102_0304_0506_0708, 3, 4, 5, &name);
            assert_eq!(compound.len() % 4, 0);
            assert_eq!(
                packets(&compound),
                [
                    Packet::SenderReport {
                        ssrc: 1,
                        ntp: 0x0102_0304_0506_0708,
                        rtp_time: 3,
                        packets: 4,
                        octets: 5,
                        reports: vec![]
                    },
                    Packet::SourceDescription
                ]
            );
            // The item list ends with at least one zero (RFC 3550 section 6.5).
            assert_eq!(compound.last(), Some(&0));
        }
    }

    #[test]
    fn a_sender_report_keeps_all_but_what_is_put_into_it() {
        let before = sender_report(9, 1, 2, 3, 4, "me");
        let info = SenderInfo { ntp: u64::MAX - 1, rtp_time: 6, packets: 7, octets: 8 };
        assert_eq!(info.put_into(&before), Some(sender_report(9, u64::MAX - 1, 6, 7, 8, "me")));
        assert_eq!(SenderInfo::of(&before), Some(SenderInfo { ntp: 1, rtp_time: 2, packets: 3, octets: 4 }));
        assert_eq!(info.put_into(&receiver_report(9, &[], "me")), None);
        assert_eq!(info.put_into(&before[..27]), None);
    }

    #[test]
    fn a_goodbye_begins_with_a_report() {
        assert_eq!(
            packets(&bye(9, "me")),
            [Packet::ReceiverReport { ssrc: 9, reports: vec![] }, Packet::SourceDescription, Packet::Goodbye(vec![9])]
        );
    }

    #[test]
    fn a_receiver_report_tells_of_losses_that_may_be_negative() {
        let mut compound = vec![0x81, 201, 0, 7];
        for value in [5u32, 6, 0x80ff_ffff, 0x0001_ffff, 12, 13, 14] {
            compound.extend_from_slice(&value.to_be_bytes());
        }
        // An application packet behind it is skipped.
        compound.extend_from_slice(&[0x80, 204, 0, 1, 0, 0, 0, 0]);
        let block = ReportBlock {
            ssrc: 6,
            fraction_lost: 128,
            lost: -1,
            highest_sequence: 0x0001_ffff,
            jitter: 12,
            last_sender_report: 13,
            delay: 14,
        };
        assert_eq!(packets(&compound), [Packet::ReceiverReport { ssrc: 5, reports: vec![block] }, Packet::Other(204)]);
    }

    #[test]
    fn a_fault_names_its_place_and_ends_the_compound() {
        let mut compound = bye(9, "me");
        let whole = compound.len();
        compound.extend_from_slice(&[0x80, 201, 0, 9, 0, 0, 0, 0]);
        let got: Vec<_> = parse(&compound).collect();
        assert_eq!(got.len(), 4);
        assert_eq!(got[3], Err(Fault { offset: whole, kind: FaultKind::Short }));
        let kind = |bytes: &[u8]| parse(bytes).next().unwrap().unwrap_err().kind;
        assert_eq!(kind(&[0x40, 201, 0, 0]), FaultKind::Version);
        assert_eq!(kind(&[0x80, 201]), FaultKind::Short);
        // One report block is promised, none is there.
        assert_eq!(kind(&[0x81, 201, 0, 1, 0, 0, 0, 0]), FaultKind::Content);
        assert_eq!(parse(&[]).count(), 0);
    }
}
