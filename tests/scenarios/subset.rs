//! A client gets only the tracks that it set up, on the channels that it requested.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Packet, tracks};
use crate::harness::{DEADLINE, wait_until};

/// Number of packets that are checked.
const PACKETS: usize = 200;

/// SETUP of the tracks of `media` on these channels, PLAY, and the packets received.
fn play(relay: &Relay, wanted: &[(&str, u8, u8)]) -> Vec<Packet> {
    play_with_others(relay, wanted, &Players::new(1))
}

/// Players that start together.
struct Players {
    count: usize,
    set_up: AtomicUsize,
    /// The first packet of the first track of each that plays.
    first: Mutex<Vec<u16>>,
}

impl Players {
    fn new(count: usize) -> Players {
        Players { count, set_up: AtomicUsize::new(0), first: Mutex::default() }
    }
}

/// The same; PLAY is sent when all are ready, and they end when the packets that all of them received were checked.
fn play_with_others(relay: &Relay, wanted: &[(&str, u8, u8)], players: &Players) -> Vec<Packet> {
    let mut client = Client::connect(relay.address());
    let described = client.describe(&relay.url("/")).expect(200);
    let tracks = tracks(&described);
    for &(media, rtp, rtcp) in wanted {
        let track = tracks.iter().find(|t| t.media == media).unwrap();
        let answer = client.setup(track, rtp, rtcp).expect(200);
        assert_eq!(answer.transport("interleaved"), Some(format!("{rtp}-{rtcp}").as_str()));
    }
    players.set_up.fetch_add(1, Ordering::Relaxed);
    wait_until("the others have caught up", DEADLINE, || players.set_up.load(Ordering::Relaxed) >= players.count);
    let played = client.play(described.header("Content-Base").unwrap()).expect(200);
    let info = played.rtp_info();
    assert_eq!(info.len(), wanted.len(), "{played:#?}");
    let own = info[0].1;
    players.first.lock().unwrap().push(own);
    let all_play = || players.first.lock().unwrap().len() >= players.count;
    wait_until("the others play", DEADLINE, all_play);
    // The first to start has packets that the others did not receive.
    let ahead = |seq: &u16| Some(seq.wrapping_sub(own)).filter(|ahead| *ahead < 1 << 15).unwrap_or(0);
    let met = players.first.lock().unwrap().iter().map(ahead).max().unwrap();
    let (mut packets, mut behind) = (Vec::new(), 0);
    while packets.len() < PACKETS || behind < PACKETS / 4 {
        let packet = client.packet();
        behind += usize::from(packet.channel == wanted[0].1 && packet.seq().wrapping_sub(own) >= met);
        packets.push(packet);
    }
    packets
}

fn count_by_channel(packets: &[Packet]) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    for packet in packets {
        *counts.entry(packet.channel).or_default() += 1;
    }
    counts
}

#[test]
fn video_alone() {
    let _turn = beside_others();
    let relay = Relay::demo();
    let counts = count_by_channel(&play(&relay, &[("video", 0, 1)]));
    assert!(counts[&0] > PACKETS / 2 && counts.keys().all(|channel| *channel <= 1), "{counts:?}");
}

#[test]
fn audio_alone() {
    let _turn = beside_others();
    let relay = Relay::demo();
    let packets = play(&relay, &[("audio", 0, 1)]);
    let rtp: Vec<&Packet> = packets.iter().filter(|p| p.channel == 0).collect();
    assert!(rtp.len() > PACKETS / 2);
    assert!(rtp.iter().all(|p| p.bytes[1] & 0x7F == 0), "PCMU is payload type 0");
    assert!(rtp.windows(2).all(|pair| pair[1].seq() == pair[0].seq().wrapping_add(1)));
}

#[test]
fn other_channel_numbers_carry_the_same_packets() {
    let _turn = beside_others();
    let relay = Relay::demo();
    let players = Players::new(2);
    let usual = std::thread::scope(|scope| {
        let other = scope.spawn(|| play_with_others(&relay, &[("video", 10, 11), ("audio", 4, 5)], &players));
        let usual = play_with_others(&relay, &[("video", 0, 1), ("audio", 2, 3)], &players);
        let other = other.join().unwrap();
        for packet in &other {
            assert!([4, 5, 10, 11].contains(&packet.channel), "channel {}", packet.channel);
        }
        for (from, to) in [(0, 10), (2, 4)] {
            let of = |packets: &[Packet], channel: u8| -> BTreeMap<u16, Vec<u8>> {
                packets.iter().filter(|p| p.channel == channel).map(|p| (p.seq(), p.bytes.clone())).collect()
            };
            let (usual, other) = (of(&usual, from), of(&other, to));
            let both = usual.iter().filter(|(seq, _)| other.contains_key(seq)).collect::<Vec<_>>();
            assert!(both.len() > 10, "they hardly met: {} packets", both.len());
            assert!(both.iter().all(|(seq, bytes)| other[seq] == **bytes));
        }
        usual
    });
    assert_eq!(count_by_channel(&usual).len(), 4, "both tracks have reports too");
}

#[test]
fn the_channels_the_other_way_round() {
    let _turn = beside_others();
    let relay = Relay::demo();
    let packets = play(&relay, &[("video", 2, 3), ("audio", 0, 1)]);
    assert!(packets.iter().filter(|p| p.channel == 0).all(|p| p.bytes[1] & 0x7F == 0));
    assert!(packets.iter().filter(|p| p.channel == 2).all(|p| p.bytes[1] & 0x7F >= 96));
}
