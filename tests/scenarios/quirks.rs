//! Recorded answers of real cameras, replayed by a camera that also sends media: each results in a stream that ffprobe can read, or in
//! an error that names the problem.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::camera::{PPS, SPS};
use crate::harness::machine::beside_others;
use crate::harness::program::run;
use crate::harness::relay::Relay;
use crate::harness::{DEADLINE, test_file, wait_until};

/// One camera: the files with its answers, and the expected result.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    describe: &'static str,
    /// By track; the last one is used for further tracks.
    setups: &'static [&'static str],
    play: Option<&'static str>,
    /// To OPTIONS, which the relay sends as keep-alive; it is told to do so often.
    options: Option<&'static str>,
    teardown: Option<&'static str>,
    /// Media are sent as datagrams.
    udp: bool,
    outcome: Outcome,
}

#[derive(Clone, Copy)]
enum Outcome {
    /// ffprobe finds these codecs, in the order of the tracks.
    Codecs(&'static [&'static str]),
    /// The relay's log has this line about it.
    Fault(&'static str),
}

use Outcome::{Codecs, Fault};

const fn case(name: &'static str, describe: &'static str, outcome: Outcome) -> Case {
    Case { name, describe, setups: &[], play: None, options: None, teardown: None, udp: false, outcome }
}

const CASES: &[Case] = &[
    case("anjvision", "anjvision_describe", Codecs(&["hevc"])),
    case("anpviz", "anpviz_sdp", Codecs(&["h264", "aac"])),
    Case {
        setups: &["bunny_setup"],
        play: Some("bunny_play"),
        ..case("bunny", "bunny_describe", Codecs(&["aac", "h264"]))
    },
    Case {
        setups: &["dahua_setup"],
        play: Some("dahua_play"),
        options: Some("dahua_options"),
        ..case("dahua", "dahua_describe_h264_aac_onvif", Codecs(&["h264", "aac", ""]))
    },
    case("dahua265", "dahua_describe_h265_pcma", Codecs(&["hevc", "pcm_alaw"])),
    case("foscam", "foscam_describe", Codecs(&["h264", "pcm_mulaw"])),
    case("geovision", "geovision_sdp", Codecs(&["h264", ""])),
    Case {
        setups: &["gw_main_setup_video", "gw_main_setup_audio"],
        play: Some("gw_main_play"),
        // Its description calls payload type 8 PCMU.
        ..case("gw_main", "gw_main_describe", Codecs(&["h264", "pcm_mulaw"]))
    },
    Case {
        setups: &["gw_sub_setup"],
        play: Some("gw_sub_play"),
        ..case("gw_sub", "gw_sub_describe", Codecs(&["h264"]))
    },
    Case {
        // Its answer to SETUP is about UDP, though TCP was requested.
        setups: &["h264dvr_setup_video", "h264dvr_setup_audio"],
        play: Some("h264dvr_play"),
        ..case("h264dvr", "h264dvr_describe", Codecs(&["h264", "pcm_alaw"]))
    },
    Case {
        setups: &["hikvision_setup"],
        play: Some("hikvision_play"),
        ..case("hikvision", "hikvision_describe", Codecs(&["h264", ""]))
    },
    Case { setups: &["hikvision_setup_ssrc_space"], ..case("ssrc_space", "gw_sub_describe", Codecs(&["h264"])) },
    case("ipcam", "ipcam_describe", Codecs(&["h264"])),
    Case { play: Some("laureii_play"), ..case("laureii", "ipcam_describe", Codecs(&["h264"])) },
    case("longse", "longse_unauthorized", Fault("401")),
    Case { setups: &["luckfox_rkipc_setup_tcp"], ..case("luckfox", "ipcam_describe", Codecs(&["h264"])) },
    Case {
        setups: &["luckfox_rkipc_setup_udp"],
        udp: true,
        ..case("luckfox_udp", "ipcam_describe", Codecs(&["h264"]))
    },
    case("macrovideo", "macrovideo_describe", Codecs(&["h264"])),
    case("no_content_type", "missing_content_type_describe", Codecs(&["h264", "aac"])),
    Case {
        setups: &["reolink_setup"],
        play: Some("reolink_play"),
        teardown: Some("reolink_teardown"),
        ..case("reolink", "reolink_describe", Codecs(&["h264", "aac"]))
    },
    case("control_first", "reolink_describe_control_first", Codecs(&["h264", "aac"])),
    Case { play: Some("bad_rtptime"), ..case("bad_rtptime", "ipcam_describe", Codecs(&["h264"])) },
    case("tplink", "tplink_sdp", Codecs(&["hevc", "pcm_alaw"])),
    case("ubiquiti", "ubiquiti_sdp", Codecs(&["aac", "opus", "h264"])),
    case("vstarcam", "vstarcam_describe", Codecs(&["h264", "pcm_alaw"])),
];

fn file(name: &str) -> String {
    let bytes = std::fs::read(test_file(&format!("data/cameras/{name}.txt"))).expect(name);
    String::from_utf8_lossy(&bytes).replace("\r\n", "\n").trim_start().to_owned()
}

/// A transcript's answer with the request's number and another body length.
fn answer(text: &str, cseq: &str, base: &str) -> String {
    if text.starts_with("v=0") {
        let body = text.replace('\n', "\r\n");
        let length = body.len();
        return format!(
            "RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\nContent-Type: application/sdp\r\nContent-Base: {base}/\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
    }
    let (head, body) = text.split_once("\n\n").unwrap_or((text.trim_end(), ""));
    let body = body.replace('\n', "\r\n");
    let mut out = String::new();
    for line in head.lines() {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        match name.as_str() {
            "cseq" => out += &format!("CSeq: {cseq}\r\n"),
            "content-length" => {}
            _ => out += &format!("{line}\r\n"),
        }
    }
    if !body.is_empty() {
        out += &format!("Content-Length: {}\r\n", body.len());
    }
    out + "\r\n" + &body
}

/// A track as in the camera's own description.
#[derive(Clone, Debug)]
struct Track {
    payload_type: u8,
    encoding: String,
    ssrc: u32,
}

fn tracks(text: &str) -> Vec<Track> {
    let mut tracks: Vec<Track> = Vec::new();
    for line in text.lines() {
        if let Some(media) = line.strip_prefix("m=") {
            let payload_type = media.split_whitespace().nth(3).and_then(|it| it.parse().ok()).unwrap_or(127);
            tracks.push(Track { payload_type, encoding: String::new(), ssrc: 0x7000 + tracks.len() as u32 });
        } else if let (Some(track), Some(map)) = (tracks.last_mut(), line.strip_prefix("a=rtpmap:")) {
            track.encoding = map.split([' ', '/']).nth(1).unwrap_or_default().to_ascii_uppercase();
        }
    }
    tracks
}

/// The requests to the cameras: names and methods, in order.
type AskedFor = Arc<Mutex<Vec<(&'static str, String)>>>;

/// The destination of a track's media.
#[derive(Clone, Copy, Debug)]
enum Place {
    Channel(u8),
    Port(u16),
}

fn serve(case: Case, stream: TcpStream, asked_for: &AskedFor) -> std::io::Result<()> {
    let describe = file(case.describe);
    let mut tracks = tracks(&describe);
    let mut set_up = 0;
    let mut order = Vec::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    // Media are sent while this exists.
    let session = Arc::new(());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            // The relay's receiver reports are skipped.
            while head.is_empty() && reader.fill_buf()?.first() == Some(&b'$') {
                let mut frame = [0; 4];
                reader.read_exact(&mut frame)?;
                reader.read_exact(&mut vec![0; usize::from(u16::from_be_bytes([frame[2], frame[3]]))])?;
            }
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let mut words = head.split(' ');
        let (method, url) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let cseq = header("CSeq:");
        let base = url.trim_end_matches('/');
        asked_for.lock().unwrap().push((case.name, method.clone()));
        match method.as_str() {
            "DESCRIBE" => writer.write_all(answer(&describe, cseq, base).as_bytes())?,
            "SETUP" => {
                let asked = header("Transport:").split("interleaved=").nth(1).unwrap_or("0-1").to_owned();
                let name = case.setups.get(set_up).or(case.setups.last());
                let text = name.map_or_else(
                    || format!("RTSP/1.0 200 OK\nCSeq: 1\nTransport: RTP/AVP/TCP;unicast;interleaved={asked}\nSession: 4711\n\n"),
                    |name| file(name).replace("interleaved=0-1", &format!("interleaved={asked}")).replace("interleaved=2-3", &format!("interleaved={asked}")),
                );
                // The URL alone does not tell which track is set up: the relay skips none here except back channels.
                let track = &mut tracks[set_up];
                if let Some(ssrc) = text.split("ssrc=").nth(1) {
                    let hex: String = ssrc.trim_start().chars().take_while(char::is_ascii_hexdigit).collect();
                    track.ssrc = u32::from_str_radix(&hex, 16).unwrap_or(track.ssrc);
                }
                let port =
                    header("Transport:").split("client_port=").nth(1).and_then(|it| it.split('-').next()?.parse().ok());
                order.push(match port.filter(|_| case.udp) {
                    Some(port) => Place::Port(port),
                    None => Place::Channel(asked.split('-').next().and_then(|it| it.parse().ok()).unwrap_or(0)),
                });
                set_up += 1;
                let often = if case.options.is_some() { text.replace("timeout=60", "timeout=2") } else { text };
                writer.write_all(answer(&often, cseq, base).as_bytes())?;
            }
            "PLAY" => {
                let text = case.play.map_or_else(|| "RTSP/1.0 200 OK\nCSeq: 1\nSession: 4711\n\n".to_owned(), file);
                writer.write_all(answer(&text, cseq, base).as_bytes())?;
                let media = writer.try_clone()?;
                let (playing, tracks) = (Arc::downgrade(&session), tracks.iter().cloned().zip(order.clone()).collect());
                std::thread::spawn(move || send(tracks, media, &playing));
            }
            "OPTIONS" if case.options.is_some() => {
                writer.write_all(answer(&file(case.options.unwrap()), cseq, base).as_bytes())?;
            }
            "TEARDOWN" if case.teardown.is_some() => {
                writer.write_all(answer(&file(case.teardown.unwrap()), cseq, base).as_bytes())?;
            }
            _ => writer.write_all(format!("RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\nSession: 4711\r\n\r\n").as_bytes())?,
        }
    }
}

/// Parameter sets and an IDR picture, valid as far as a parser looks.
fn keyframe_payloads() -> Vec<Vec<u8>> {
    vec![SPS.to_vec(), PPS.to_vec(), [vec![0x65, 0x88], vec![0x55; 200]].concat()]
}

/// Sends media of every track until the connection ends, which the datagram sockets would not notice: nothing may be sent to
/// the relay's ports when another program may have them.
fn send(tracks: Vec<(Track, Place)>, mut stream: TcpStream, playing: &Weak<()>) -> std::io::Result<()> {
    let datagrams = UdpSocket::bind("127.0.0.1:0")?;
    for count in (0u32..).take_while(|_| playing.strong_count() > 0) {
        let mut wire = Vec::new();
        for (track, place) in &tracks {
            let (payloads, ticks): (Vec<Vec<u8>>, u32) = match track.encoding.as_str() {
                "H264" => (keyframe_payloads(), 1_800),
                // An IDR slice that is the picture's first.
                "H265" => (vec![[vec![0x26, 0x01, 0x80], vec![0x55; 200]].concat()], 1_800),
                "MPEG4-GENERIC" => (vec![[vec![0x00, 0x10, 0x01, 0x90], vec![0x21; 50]].concat()], 1_024),
                "OPUS" => (vec![vec![0xfc, 0xff, 0xfe]], 960),
                "VND.ONVIF.METADATA" => (vec![b"<tt:MetadataStream/>".to_vec()], 1_800),
                _ => (vec![vec![0xd5; 160]], 160),
            };
            let last = payloads.len() - 1;
            for (index, payload) in payloads.iter().enumerate() {
                let seq = (count * payloads.len() as u32 + index as u32) as u16;
                let marker = if index == last { 0x80 } else { 0 };
                let mut packet = vec![0x80, marker | track.payload_type];
                packet.extend(seq.to_be_bytes());
                packet.extend((count * ticks).to_be_bytes());
                packet.extend(track.ssrc.to_be_bytes());
                packet.extend(payload);
                match *place {
                    Place::Channel(channel) => {
                        wire.extend([b'$', channel]);
                        wire.extend((packet.len() as u16).to_be_bytes());
                        wire.extend(packet);
                    }
                    Place::Port(port) => drop(datagrams.send_to(&packet, ("127.0.0.1", port))?),
                }
            }
        }
        stream.write_all(&wire)?;
        // The pace of a camera.
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts the case's camera; it ends with the process.
fn start(case: Case, asked_for: &AskedFor) -> SocketAddr {
    let asked_for = asked_for.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // An error means that the relay left.
            let asked_for = asked_for.clone();
            std::thread::spawn(move || serve(case, stream, &asked_for));
        }
    });
    address
}

#[test]
fn every_real_camera_is_relayed_or_told_what_is_wrong_with_it() {
    let _turn = beside_others();
    let mut config = "listen = [\"127.0.0.1:0\"]\nworkers = 2\n".to_owned();
    let asked_for = AskedFor::default();
    for case in CASES {
        let address = start(*case, &asked_for);
        let transport = if case.udp { "udp" } else { "tcp" };
        config += &format!("[[stream]]\nname = \"{}\"\nsource = \"rtsp://{address}/cam\"\n", case.name);
        config += &format!("transport = \"{transport}\"\n");
    }
    let relay = Relay::configured(&config);
    // Most of the time ffprobe waits for more of the stream.
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let judges: Vec<_> = CASES.iter().map(|case| scope.spawn(|| judge(&relay, case))).collect();
        judges.into_iter().filter_map(|judge| judge.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Its answer to OPTIONS determines the keep-alive method from then on.
    let asked = |name: &str, what: &str| {
        asked_for.lock().unwrap().iter().any(|(of, method)| *of == name && method.ends_with(what))
    };
    wait_until("dahua is kept alive", DEADLINE, || asked("dahua", "OPTIONS") && asked("dahua", "_PARAMETER"));
    assert_eq!(log_of(&relay, "dahua"), Vec::<String>::new());
    relay.signal(Signal::SIGTERM);
    let (status, _, printed) = relay.finish(DEADLINE);
    assert!(status.success() && !printed.contains("panicked"), "{printed}");
    // The relay does not wait for the camera's thread.
    wait_until("reolink gets TEARDOWN", DEADLINE, || asked("reolink", "TEARDOWN"));
}

/// What is wrong with the result of a case, if anything.
fn judge(relay: &Relay, case: &Case) -> Option<String> {
    match case.outcome {
        Codecs(expected) => {
            let found = probe(&relay.url(&format!("/{}", case.name)));
            let log = log_of(relay, case.name);
            (found != expected).then(|| format!("{}: {found:?} instead of {expected:?}; {log:?}", case.name))
        }
        Fault(words) => {
            wait_until(&format!("{} is reported", case.name), DEADLINE, || {
                log_of(relay, case.name).iter().any(|line| line.contains(words))
            });
            None
        }
    }
}

fn log_of(relay: &Relay, name: &str) -> Vec<String> {
    let of = format!("stream={name} ");
    let printed = relay.printed();
    let lines = printed.lines().filter(|line| line.contains(&of) && line.contains("WARN"));
    lines.map(str::to_owned).collect()
}

/// The codecs that ffprobe finds, once the stream is up.
fn probe(url: &str) -> Vec<String> {
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        let arguments = ["-v", "quiet", "-rtsp_transport", "tcp", "-analyzeduration", "500000", "-probesize", "200000"];
        let show = ["-show_entries", "stream=codec_name", "-of", "json", url];
        let finished = run(4 * DEADLINE, "ffprobe", &[&arguments[..], &show[..]].concat());
        let seen: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
        if let Some(streams) = seen["streams"].as_array().filter(|streams| !streams.is_empty()) {
            return streams.iter().map(|s| s["codec_name"].as_str().unwrap_or_default().to_owned()).collect();
        }
        // The camera has not been described yet; the interval between two tries.
        std::thread::sleep(Duration::from_millis(200));
    }
    Vec::new()
}
