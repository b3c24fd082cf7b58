//! The supervisor with misbehaving cameras.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

use super::camera::PullTransport;
use super::fake_camera::{AUDIO, BACK_CHANNEL, DRIBBLED_BYTES, FakeCamera, Play, Script, VIDEO};
use super::pattern;
use super::pipeline::Pipeline;
use super::shared::Source;
use super::spec::{Demand, OnDemand, SourceKind, SourceSpec};
use super::stamp;
use super::supervisor::run_with;
use crate::egress::IoKind;
use crate::egress::runtime::Runtime;
use crate::media::chunk::{Chunk, ChunkKind};
use crate::media::{SourceState, StreamEvent, StreamSink, TrackId};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
pub(super) struct Collector(Rc<RefCell<Vec<StreamEvent>>>);

impl StreamSink for Collector {
    fn accept(&mut self, msg: StreamEvent) {
        self.0.borrow_mut().push(msg);
    }
}

impl Collector {
    fn states(&self) -> Vec<SourceState> {
        let state = |msg: &StreamEvent| if let StreamEvent::State(state) = msg { Some(*state) } else { None };
        self.0.borrow().iter().filter_map(state).collect()
    }

    /// The chunks of a track's media so far.
    fn chunks(&self, track: TrackId) -> Vec<Arc<Chunk>> {
        let chunk = |msg: &StreamEvent| if let StreamEvent::Chunk(chunk) = msg { Some(chunk.clone()) } else { None };
        let media = |chunk: &Arc<Chunk>| chunk.kind == ChunkKind::Media && chunk.track == track;
        self.0.borrow().iter().filter_map(chunk).filter(media).collect()
    }
}

pub(super) fn spec(url: &str) -> SourceSpec {
    SourceSpec::new("front", SourceKind::parse(url).expect("a sound URL"))
}

/// Runs a supervisor until `done`, then stops it and waits for its end.
pub(super) fn supervise(spec: SourceSpec, done: impl Fn(&Source, &Collector) -> bool) -> (Rc<Source>, Collector) {
    Runtime::new(IoKind::Epoll).expect("a runtime").block_on(supervise_here(spec, done))
}

async fn supervise_here(spec: SourceSpec, done: impl Fn(&Source, &Collector) -> bool) -> (Rc<Source>, Collector) {
    let source = Source::new(Pipeline::new(7));
    let collector = Collector::default();
    let (stop, stopped) = watch::channel(false);
    let wait = async {
        while !done(&source, &collector) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.send(true).expect("the supervisor listens");
    };
    let run = run_with(spec, source.clone(), collector.clone(), stopped, || 0.0);
    let both = async { tokio::join!(run, wait) };
    let ended = tokio::time::timeout(PATIENCE, both).await;
    assert!(ended.is_ok(), "not done: {:?}, states {:?}", source.status.borrow(), collector.states());
    (source, collector)
}

pub(super) fn fault_is(part: &'static str) -> impl Fn(&Source, &Collector) -> bool {
    move |source, _| source.status.borrow().fault.as_ref().is_some_and(|fault| fault.contains(part))
}

pub(super) fn live_times(times: usize) -> impl Fn(&Source, &Collector) -> bool {
    move |_, collector| collector.states().iter().filter(|state| **state == SourceState::Live).count() >= times
}

/// An address at which nothing listens. The system gives it to no other program while the socket exists; a camera can be
/// started on it.
fn nobody_listens() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option that every socket has");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("bound");
    (socket, address)
}

#[test]
fn a_frame_in_many_pieces_is_read_once_a_millisecond() {
    const PIECES: u32 = 400;
    let script = Script { plays: vec![Play::Dribble(PIECES)], ..Script::default() };
    let camera = FakeCamera::start(script);
    let begun = Instant::now();
    let read_at_its_end = Cell::new(None);
    let (source, collector) = supervise(spec(&format!("rtsp://{}/cam", camera.address)), |source, collector| {
        let bytes: usize = collector.chunks(TrackId(0)).iter().map(|chunk| chunk.bytes.len()).sum();
        if bytes >= DRIBBLED_BYTES {
            read_at_its_end.set(Some(source.reads.get()));
        }
        bytes >= DRIBBLED_BYTES
    });
    // Responses and the packets before and after them may take one each.
    let reads = read_at_its_end.get().expect("looked at");
    let most = begun.elapsed().as_millis() as u64 + 16;
    assert!(reads <= most, "{reads} reads in {most} ms");
    assert!(source.copied.get() > 0 && collector.chunks(TrackId(0)).len() > 3);
}

#[test]
fn the_right_password_opens_the_camera() {
    let script = Script { credentials: Some(("admin", "p@ss w%rd")), ..Script::default() };
    let camera = FakeCamera::start(script);
    let url = format!("rtsp://admin:p%40ss%20w%25rd@{}/cam", camera.address);
    let (source, collector) = supervise(spec(&url), live_times(1));
    assert_eq!(collector.states(), [SourceState::Connecting, SourceState::Live, SourceState::Down]);
    assert_eq!(source.status.borrow().failures, 0);
    assert_eq!(camera.count("TEARDOWN"), 1, "{:?}", camera.requests());
}

#[test]
fn a_wrong_password_is_named_and_not_shown() {
    let camera = FakeCamera::start(Script { credentials: Some(("admin", "right")), ..Script::default() });
    let url = format!("rtsp://admin:wrong-secret@{}/cam", camera.address);
    let (source, _) = supervise(spec(&url), fault_is("401"));
    let fault = source.status.borrow().fault.clone().expect("a fault");
    assert!(fault.contains("refuses the user name and password"), "{fault}");
    assert!(!fault.contains("wrong-secret"), "{fault}");

    let (source, _) = supervise(spec(&format!("rtsp://{}/cam", camera.address)), fault_is("401"));
    let fault = source.status.borrow().fault.clone().expect("a fault");
    assert!(fault.contains("rtsp://USER:PASSWORD@"), "{fault}");
}

#[test]
fn a_refused_connection_is_named_and_tried_again() {
    let (_reserved, address) = nobody_listens();
    let (source, collector) =
        supervise(spec(&format!("rtsp://{address}/cam")), |source, _| source.status.borrow().failures >= 2);
    let fault = source.status.borrow().fault.clone().expect("a fault");
    assert!(fault.contains("connection refused"), "{fault}");
    assert!(!collector.states().contains(&SourceState::Live));
}

#[test]
fn an_answer_that_never_ends_is_not_read_for_long() {
    for (step, script) in [
        ("DESCRIBE", Script { rambles: Some("DESCRIBE"), ..Script::default() }),
        ("SETUP", Script { rambles: Some("SETUP"), ..Script::default() }),
        ("PLAY", Script { rambles: Some("PLAY"), ..Script::default() }),
        ("playing", Script { plays: vec![Play::RambleAfter(20)], ..Script::default() }),
    ] {
        let camera = FakeCamera::start(script);
        let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
        // Only missing data may end it.
        (spec.camera.timeouts.describe, spec.camera.timeouts.setup, spec.camera.timeouts.play) =
            (PATIENCE, PATIENCE, PATIENCE);
        (spec.camera.timeouts.silence, spec.camera.timeouts.teardown) = (PATIENCE, Duration::ZERO);
        supervise(spec, move |source, _| {
            let status = source.status.borrow();
            status.fault.as_ref().is_some_and(|fault| fault.starts_with(step) && fault.contains("4 MiB"))
        });
    }
}

#[test]
fn nothing_is_owed_to_a_camera_that_refuses_teardown() {
    let script = Script { plays: vec![Play::StallAfter(2)], refuses: Some("TEARDOWN"), ..Script::default() };
    let camera = FakeCamera::start(script);
    let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
    spec.camera.timeouts.silence = Duration::from_millis(50);
    supervise(spec, |source, _| {
        // Everything that talks to a camera belongs to its stream's supervisor, and ends with it.
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
        source.status.borrow().sessions >= 4
    });
    assert!((4..=5).contains(&camera.count("TEARDOWN")), "{:?}", camera.requests());
}

#[test]
fn a_camera_that_stalls_after_play_is_left_and_tried_again() {
    let camera = FakeCamera::start(Script { plays: vec![Play::Stall, Play::Stream], ..Script::default() });
    let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
    spec.camera.timeouts.silence = Duration::from_millis(300);
    let (source, _) = supervise(spec, live_times(1));
    assert!(source.status.borrow().failures >= 1);
    assert!(camera.count("PLAY") >= 2);
    assert_eq!(camera.count("TEARDOWN"), camera.count("PLAY"), "each session is torn down: {:?}", camera.requests());
}

#[test]
fn a_camera_that_closes_in_mid_stream_is_pulled_again() {
    let camera = FakeCamera::start(Script { plays: vec![Play::CloseAfter(5)], ..Script::default() });
    let (source, collector) = supervise(spec(&format!("rtsp://{}/cam", camera.address)), live_times(3));
    assert!(source.status.borrow().reconnects() >= 2);
    let chunks = collector.chunks(TrackId(0));
    let next = |chunk: &Chunk| chunk.first_seq.wrapping_add(chunk.packets);
    assert!(chunks.windows(2).all(|pair| next(&pair[0]) == pair[1].first_seq), "numbers go on over reconnects");
    use SourceState::{Connecting, Down, Live};
    assert_eq!(collector.states()[..6], [Connecting, Live, Down, Live, Down, Live]);
}

#[test]
fn a_camera_that_closes_the_connection_is_told_of_in_these_words() {
    let camera = FakeCamera::start(Script { plays: vec![Play::CloseAfter(3)], ..Script::default() });
    supervise(spec(&format!("rtsp://{}/cam", camera.address)), fault_is("closed the connection"));
}

#[test]
fn what_is_wrong_with_packets_ends_no_session() {
    for play in [Play::ChangeSsrcAfter(3), Play::RenumberAfter(3), Play::GarbleAfter(3)] {
        let camera = FakeCamera::start(Script { plays: vec![play], ..Script::default() });
        let spec = spec(&format!("rtsp://{}/cam", camera.address));
        let (source, _) = supervise(spec, |_, collector| collector.chunks(TrackId(0)).len() >= 30);
        assert_eq!((source.status.borrow().failures, camera.count("PLAY")), (0, 1), "{play:?}");
    }
}

#[test]
fn all_tracks_but_the_back_channel_are_set_up() {
    let medias = vec![VIDEO, BACK_CHANNEL, AUDIO];
    let camera = FakeCamera::start(Script { medias, ..Script::default() });
    let both = |_: &Source, collector: &Collector| {
        [TrackId(0), TrackId(1)].iter().all(|track| collector.chunks(*track).len() >= 3)
    };
    supervise(spec(&format!("rtsp://{}/cam", camera.address)), both);
    let setups: Vec<_> = camera.requests().into_iter().filter(|request| request.starts_with("SETUP")).collect();
    assert_eq!(setups, ["SETUP cam/trackID=0", "SETUP cam/trackID=2"]);
}

#[test]
fn a_refused_track_is_left_out_and_the_other_played() {
    let script = Script { medias: vec![VIDEO, AUDIO], setups: vec![200, 500], ..Script::default() };
    let camera = FakeCamera::start(script);
    let (source, _) = supervise(spec(&format!("rtsp://{}/cam", camera.address)), live_times(1));
    assert_eq!(source.status.borrow().failures, 0);
}

#[test]
fn a_track_that_makes_the_camera_hang_up_is_left_out_at_the_third_try() {
    let script = Script { medias: vec![VIDEO, AUDIO], hang_up_on: Some(1), ..Script::default() };
    let camera = FakeCamera::start(script);
    let (source, _) = supervise(spec(&format!("rtsp://{}/cam", camera.address)), live_times(1));
    assert_eq!(source.status.borrow().failures, 2);
    assert_eq!(camera.count("DESCRIBE"), 3);
}

#[test]
fn the_picture_is_never_given_up_for_the_sound() {
    let script = Script { medias: vec![AUDIO, VIDEO], hang_up_on: Some(1), ..Script::default() };
    let camera = FakeCamera::start(script);
    let url = format!("rtsp://{}/cam", camera.address);
    let (_, collector) = supervise(spec(&url), |source, _| source.status.borrow().failures >= 4);
    assert!(!collector.states().contains(&SourceState::Live));
}

#[test]
fn a_camera_without_tcp_is_named() {
    let camera = FakeCamera::start(Script { setups: vec![461], ..Script::default() });
    let (source, _) = supervise(spec(&format!("rtsp://{}/cam", camera.address)), fault_is("461"));
    let fault = source.status.borrow().fault.clone().expect("a fault");
    assert!(fault.contains("does not offer RTP over TCP"), "{fault}");
}

#[test]
fn each_step_that_is_not_answered_is_given_up_and_named() {
    for (mute, named) in
        [("DESCRIBE", "connecting and DESCRIBE within"), ("SETUP", "SETUP within"), ("PLAY", "PLAY within")]
    {
        let camera = FakeCamera::start(Script { mute: Some(mute), ..Script::default() });
        let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
        let short = Duration::from_millis(100);
        (spec.camera.timeouts.describe, spec.camera.timeouts.setup, spec.camera.timeouts.play) = (short, short, short);
        supervise(spec, fault_is(named));
    }
}

#[test]
fn what_is_not_rtsp_is_named() {
    let camera = FakeCamera::start(Script { greeting: Some(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), ..Script::default() });
    supervise(spec(&format!("rtsp://{}/cam", camera.address)), fault_is("not RTSP"));
}

#[test]
fn a_stop_that_nobody_can_send_any_more_is_a_stop() {
    let runtime = Runtime::new(IoKind::Epoll).expect("a runtime");
    let (stop, stopped) = watch::channel(false);
    drop(stop);
    let source = Source::new(Pipeline::new(7));
    let spec = SourceSpec::new("demo", SourceKind::Test);
    let run = run_with(spec, source, Collector::default(), stopped, || 0.0);
    runtime.block_on(async { tokio::time::timeout(PATIENCE, run).await }).expect("it ends");
}

#[test]
fn the_test_source_is_live_at_once() {
    let some = |_: &Source, collector: &Collector| {
        collector.chunks(pattern::VIDEO).len() >= 6 && collector.chunks(pattern::AUDIO).len() >= 6
    };
    let (_, collector) = supervise(SourceSpec::new("demo", SourceKind::Test), some);
    assert_eq!(collector.states(), [SourceState::Connecting, SourceState::Live, SourceState::Down]);
    let frames = collector.chunks(pattern::VIDEO);
    assert!(frames[0].starts_keyframe());
    for (number, frame) in frames.iter().enumerate() {
        let payloads = frame.spans().map(|span| {
            let packet = &frame.bytes[span.offset as usize..][..usize::from(span.len)];
            &packet[12..]
        });
        let stamps: Vec<_> = payloads.filter_map(stamp::find).map(|stamp| stamp.frame).collect();
        assert_eq!(stamps, [number as u64], "one stamp in each frame, one frame in each chunk");
    }
}

#[test]
fn a_camera_that_falls_silent_is_told_of_before_it_is_left() {
    let camera = FakeCamera::start(Script { plays: vec![Play::StallAfter(5), Play::Stream], ..Script::default() });
    let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
    // Reported after half of it: longer than a busy machine keeps the camera from sending.
    spec.camera.timeouts.silence = Duration::from_secs(1);
    let (_, collector) = supervise(spec, live_times(2));
    use SourceState::{Connecting, Down, Live, Silent};
    assert_eq!(collector.states()[..6], [Connecting, Live, Silent, Down, Live, Down]);
}

#[test]
fn a_camera_that_is_silent_after_a_failure_stays_down_until_media_come() {
    let plays = vec![Play::StallAfter(5), Play::Stall, Play::Stream];
    let camera = FakeCamera::start(Script { plays, ..Script::default() });
    let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
    spec.camera.timeouts.silence = Duration::from_secs(1);
    let (source, collector) = supervise(spec, live_times(2));
    use SourceState::{Connecting, Down, Live, Silent};
    assert_eq!(collector.states(), [Connecting, Live, Silent, Down, Live, Down]);
    assert_eq!(source.status.borrow().failures, 2);
}

#[test]
fn a_pause_shorter_than_the_timeout_is_silence_and_no_end() {
    let camera = FakeCamera::start(Script { plays: vec![Play::PauseAfter(5)], ..Script::default() });
    let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
    // Reported after 50 ms; the camera pauses until that has happened.
    spec.camera.timeouts.silence = Duration::from_secs(20);
    spec.camera.timeouts.quiet = Duration::from_millis(50);
    let (source, collector) = supervise(spec, live_times(2));
    use SourceState::{Connecting, Down, Live, Silent};
    assert_eq!(collector.states(), [Connecting, Live, Silent, Live, Down]);
    assert_eq!(source.status.borrow().failures, 0);
}

#[test]
fn the_next_camera_of_a_list_is_taken_and_the_first_gone_back_to() {
    let (_reserved, address) = nobody_listens();
    let backup = FakeCamera::start(Script::default());
    let first = RefCell::new(None);
    let urls = [format!("rtsp://{address}/cam"), format!("rtsp://{}/cam", backup.address)];
    let addresses = urls.iter().map(|url| super::camera::address::CameraAddress::parse(url).expect("a sound URL"));
    let mut spec = spec("test");
    spec.kind = SourceKind::Cameras(addresses.collect());
    spec.camera.timeouts.look_back = Duration::from_millis(20);
    let (source, collector) = supervise(spec, |_, collector| {
        let lives = collector.states().iter().filter(|state| **state == SourceState::Live).count();
        if lives == 1 && first.borrow().is_none() {
            *first.borrow_mut() = Some(FakeCamera::start_at(address, Script::default()));
        }
        lives >= 2
    });
    assert_eq!(source.status.borrow().failures, 1, "the first was down once; leaving the second was no failure");
    let first = first.borrow_mut().take().expect("it was switched on");
    assert_eq!((backup.count("PLAY"), first.count("PLAY")), (1, 1));
    let chunks = collector.chunks(TrackId(0));
    let next = |chunk: &Chunk| chunk.first_seq.wrapping_add(chunk.packets);
    assert!(chunks.windows(2).all(|pair| next(&pair[0]) == pair[1].first_seq), "numbers go on from one to the other");
}

#[test]
fn an_on_demand_source_is_pulled_while_somebody_asks_for_it() {
    let camera = FakeCamera::start(Script::default());
    let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
    let (wanted, demand) = watch::channel(Demand::default());
    spec.on_demand = Some(OnDemand { stop: Duration::from_millis(200), demand });
    let asked = Cell::new(0);
    let (_, collector) = supervise(spec, |_, collector| {
        use SourceState::{Idle, Live};
        let states = collector.states();
        let times = |state| states.iter().filter(|is| **is == state).count();
        match (asked.get(), times(Live), times(Idle)) {
            (0, 0, 1) => wanted.send_modify(|demand| (demand.shards, demand.asked) = (1, 1)),
            (1, 1, 1) if wanted.borrow().shards > 0 => {
                wanted.send_modify(|demand| demand.shards = 0);
                return false;
            }
            // A client that requests the stream and leaves at once is served as well. It waits as long as the machine is slow, in case the
            // camera is not live before the relay stops pulling it.
            (asked, 1, idle) if asked > 0 && idle == asked + 1 => wanted.send_modify(|demand| demand.asked += 1),
            (asked, 2, idle) => return idle == asked + 1,
            _ => return false,
        }
        asked.set(asked.get() + 1);
        false
    });
    use SourceState::{Connecting, Down, Idle, Live};
    let mut states = collector.states();
    assert_eq!(states[..3], [Idle, Connecting, Live]);
    // The attempts that were too short.
    let short = asked.get() - 2;
    for _ in 0..short {
        assert_eq!(states[3..5], [Idle, Connecting]);
        states.drain(3..5);
    }
    assert_eq!(states, [Idle, Connecting, Live, Idle, Connecting, Live, Idle, Down]);
    assert!(camera.count("PLAY") >= 2);
    assert!(short > 0 || (camera.count("PLAY"), camera.count("TEARDOWN")) == (2, 2), "{:?}", camera.requests());
}

#[test]
fn a_camera_that_is_down_is_tried_at_once_for_whoever_asks_unless_it_has_refused_the_password() {
    // Nine attempts and the waits between them take longer than a test may.
    const TRIES: u64 = 9;
    let refusing = FakeCamera::start(Script { setups: vec![461], ..Script::default() });
    let locking = FakeCamera::start(Script { credentials: Some(("admin", "right")), ..Script::default() });
    let spec_of = |camera: &FakeCamera| spec(&format!("rtsp://admin:wrong@{}/cam", camera.address));
    let runtime = Runtime::new(IoKind::Epoll).expect("a runtime");
    let (asks, asked) = watch::channel(0u64);
    let (mut asked_for, mut locked) = (spec_of(&refusing), spec_of(&locking));
    (asked_for.asked, locked.asked) = (Some(asked.clone()), Some(asked));
    let done = Cell::new(false);
    let both = async {
        tokio::join!(
            supervise_here(asked_for, |source, _| {
                asks.send_modify(|times| *times += 1);
                done.set(source.status.borrow().failures >= TRIES);
                done.get()
            }),
            supervise_here(locked, |_, _| done.get())
        )
    };
    let ((source, _), (locked, _)) = runtime.block_on(both);
    let (tried, locked) = (source.status.borrow().failures, locked.status.borrow().failures);
    assert!(locked < tried, "{locked} tries with a password that is refused, {tried} of the other");
}

#[test]
fn auto_takes_the_other_transport_after_a_461_and_says_so_without_it() {
    let camera = FakeCamera::start(Script { medias: vec![VIDEO, AUDIO], udp_only: true, ..Script::default() });
    let url = format!("rtsp://{}/cam", camera.address);
    supervise(spec(&url), fault_is("transport = \"udp\""));
    for transport in [PullTransport::Auto, PullTransport::Udp] {
        let mut spec = spec(&url);
        spec.camera.transport = transport;
        let both = |_: &Source, collector: &Collector| {
            [TrackId(0), TrackId(1)].iter().all(|track| collector.chunks(*track).len() >= 3)
        };
        let (source, collector) = supervise(spec, both);
        assert_eq!(source.status.borrow().failures, 0);
        assert!(collector.states().ends_with(&[SourceState::Live, SourceState::Down]));
    }
}

#[test]
fn datagrams_that_were_overtaken_are_put_in_their_place() {
    let script = Script { medias: vec![VIDEO, AUDIO], udp_only: true, scramble: true, ..Script::default() };
    let camera = FakeCamera::start(script);
    let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
    spec.camera.transport = PullTransport::Udp;
    let enough = |_: &Source, collector: &Collector| {
        [TrackId(0), TrackId(1)].iter().all(|track| collector.chunks(*track).len() >= 40)
    };
    let (source, _) = supervise(spec, enough);
    let stats = source.pipeline.borrow().stats();
    assert_eq!((stats.lost, stats.late, stats.restarts), (0, 0, 0));
    assert_eq!((source.status.borrow().failures, camera.count("TEARDOWN")), (0, 1));
}

/// Deviations that have been reported of real cameras.
#[test]
fn a_camera_whose_answers_are_out_of_order_is_played_all_the_same() {
    let odd = |head: &'static str| Script { head, ..Script::default() };
    for script in [
        odd("v=0\r\no=- 1 1 IN IP4\r\ns=cam\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"),
        odd("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=cam\r\nc=IN c=IN\r\nt=0 0\r\n"),
        odd("v=0\r\no=- 1 99999999999999999999 IN IP4 0.0.0.0\r\ns=cam\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"),
        Script { medias: vec!["m=video -1 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"], ..Script::default() },
        Script { medias: vec![VIDEO, AUDIO], lifetime: " ; timeout = 60 ", ..Script::default() },
    ] {
        let what = format!("{:?} {:?} {:?}", script.head, script.medias, script.lifetime);
        let tracks = 0..script.medias.len() as u8;
        let camera = FakeCamera::start(script);
        let all =
            |_: &Source, collector: &Collector| tracks.clone().all(|track| collector.chunks(TrackId(track)).len() >= 3);
        let (source, _) = supervise(spec(&format!("rtsp://{}/cam", camera.address)), all);
        assert_eq!(source.status.borrow().failures, 0, "{what}");
        assert_eq!(camera.count("DESCRIBE"), 1, "{what}");
    }
}

#[test]
fn a_camera_that_announces_a_wrong_ssrc_is_played_all_the_same() {
    for transport in [PullTransport::Tcp, PullTransport::Udp] {
        let udp_only = transport == PullTransport::Udp;
        let script = Script { announced_ssrc: Some("0badcafe"), udp_only, ..Script::default() };
        let camera = FakeCamera::start(script);
        let mut spec = spec(&format!("rtsp://{}/cam", camera.address));
        spec.camera.transport = transport;
        let (source, _) = supervise(spec, |_, collector| collector.chunks(TrackId(0)).len() >= 3);
        assert_eq!(source.status.borrow().failures, 0);
        assert_eq!(camera.count("PLAY"), 1, "{:?}", camera.requests());
    }
}

#[test]
fn the_state_tells_since_when_a_source_is_down_however_often_it_is_tried() {
    let (_reserved, address) = nobody_listens();
    let url = format!("rtsp://{address}/cam");
    let since = Cell::new(None);
    let (source, collector) = supervise(spec(&url), |source, _| {
        let status = source.status.borrow();
        if status.state == SourceState::Down && status.failures > 0 && since.get().is_none() {
            since.set(status.since);
        }
        status.failures >= 3
    });
    assert_eq!(source.status.borrow().since, since.get());
    assert_eq!(collector.states(), [SourceState::Connecting, SourceState::Down]);
}
