//! I/O of a session with a camera: the connection, with or without TLS, and the UDP sockets. They are read when they are ready; what
//! was read goes through the [`Client`] to the stream's feed in the same turn.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Sleep, sleep_until, timeout};
use tokio_rustls::client::TlsStream;
use tracing::warn;

use super::address::CameraAddress;
use super::client::{Client, ClientState, Event, Media, Settings};
use super::fault::{Fault, Step};
use super::pace::{Drained, Pace};
use super::sockets::{Pairs, connect, taken_over};
use super::{CameraOptions, Learned, pauses, tls};
use crate::egress::datagram_pair;
use crate::limits::{CAMERA_PASS_BYTES_MAX, CAMERA_PASS_MAX_US, CAMERA_READ_BYTES_MAX, CAMERA_REDIRECTS_MAX};
use crate::media::{SourceTrack, StreamSink, TrackId};
use crate::metrics::SourceDrop;
use crate::source::feed::Feed;
use crate::source::gate::Gate;
use crate::source::held::{Deposit, FeedState, Running};
use crate::source::news::SourceNews;
use crate::source::saved::Runs;
use crate::source::shared::Source;
use crate::source::timeline::SenderReport;
use crate::source::turns::Turn as Share;
use crate::sys::Connection;

/// How long the end of a failed session waits for the answer to TEARDOWN. A camera that allows one session refuses the next one until
/// then, but a dead camera must not delay the next attempt for long.
const TEARDOWN_AFTER_FAULT: Duration = Duration::from_millis(500);

/// Datagrams that are read from a socket before other tasks run.
const ABSORB_MAX: usize = 64;

thread_local! {
    /// The read buffer, shared by all cameras of the thread, because nothing stays in it across an await.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CAMERA_READ_BYTES_MAX]);
}

/// A camera, and how to talk to it.
pub(in crate::source) struct Camera<'a> {
    pub(in crate::source) address: &'a CameraAddress,
    pub(in crate::source) options: &'a CameraOptions,
    /// Maximum time for connecting and DESCRIBE.
    pub(in crate::source) describe: Duration,
    /// What is known about the camera from earlier sessions.
    pub(in crate::source) learned: &'a mut Learned,
}

/// How a session ended.
#[derive(Debug)]
pub(in crate::source) enum Outcome<T> {
    /// It was asked to end.
    Left(T),
    /// It failed.
    Failed(Fault),
}

/// A session that another process continues, without its sockets.
#[derive(Clone, Serialize, Deserialize)]
pub(in crate::source) struct CameraSession {
    /// The camera's URL.
    pub(in crate::source) camera: String,
    /// The URLs that it has redirected to, in order.
    redirects: Vec<String>,
    client: ClientState,
    /// For each track of the session, the stream's track.
    map: Vec<TrackId>,
    feed: FeedState,
    /// For each track, whether it has two sockets for datagrams, which follow the connection.
    #[serde(default)]
    datagrams: Vec<bool>,
}

/// A session that another process starts anew, because it cannot continue its connection.
#[derive(Clone, Serialize, Deserialize)]
pub(in crate::source) struct CameraAgain {
    /// The camera's URL.
    pub(in crate::source) again: String,
    pub(in crate::source) feed: FeedState,
}

/// The camera redirects to this URL.
struct Redirected(String);

/// The connection to a camera.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }

    /// Whether TLS has unsent data.
    fn wants_write(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.get_ref().1.wants_write(),
        }
    }

    /// Sends `out` and removes what was sent.
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            let written = match self {
                Stream::Plain(tcp) => ready!(Pin::new(tcp).poll_write(cx, out)),
                Stream::Tls(tls) => ready!(Pin::new(tls).poll_write(cx, out)),
            }?;
            out.drain(..written);
        }
        match self {
            Stream::Plain(_) => Poll::Ready(Ok(())),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }
}

/// The destination of a session's media.
struct ToFeed<'a, 'f, P> {
    feed: &'a mut Feed<'f, P>,
    /// For each track of the session, the stream's track.
    map: &'a mut Vec<TrackId>,
    /// Packets have arrived since the pipeline was last told that there is nothing more to read.
    fresh: &'a mut bool,
}

impl<P: StreamSink> Media for ToFeed<'_, '_, P> {
    fn playing(&mut self, tracks: Vec<SourceTrack>) {
        *self.map = self.feed.connected(tracks);
    }

    fn packet(&mut self, track: usize, received: Instant, rtp: &[u8]) {
        if let Some(track) = self.map.get(track) {
            *self.fresh = true;
            self.feed.packet(*track, received, rtp);
        }
    }

    fn report(&mut self, track: usize, received: Instant, report: SenderReport) {
        if let Some(track) = self.map.get(track) {
            self.feed.sender_report(*track, received, report);
        }
    }

    fn dropped(&mut self, why: SourceDrop, count: u64) {
        self.feed.dropped(why, count);
    }

    fn was_read(&mut self, copied: u64) {
        self.feed.was_read(copied);
    }
}

/// Discards everything: for checking whether a camera answers.
struct Nowhere;

impl Media for Nowhere {
    fn playing(&mut self, _tracks: Vec<SourceTrack>) {}
    fn packet(&mut self, _track: usize, _received: Instant, _rtp: &[u8]) {}
    fn report(&mut self, _track: usize, _received: Instant, _report: SenderReport) {}
    fn dropped(&mut self, _why: SourceDrop, _count: u64) {}
}

/// A running session: the client with its sockets.
struct Link {
    client: Client,
    stream: Stream,
    camera: SocketAddr,
    /// By track.
    datagrams: Pairs,
    /// Since when the connection has been read without interruption, and the bytes read.
    pass: Option<(Instant, usize)>,
    share: Share,
    /// When it was last read, unless the pipeline was told since that there is nothing more.
    read_at: Option<Instant>,
    pace: Pace,
    /// The pause at whose end the session's task is woken.
    told_of_pause: Option<Instant>,
    /// The URLs that led here from the camera's own.
    redirects: Vec<String>,
}

/// Notices that the source is held, at the cost of a look while it is not.
struct Hold<'a> {
    gate: Gate,
    held: Pin<Box<dyn Future<Output = Instant> + 'a>>,
}

impl<'a> Hold<'a> {
    fn new(source: &'a Source) -> Hold<'a> {
        Hold { gate: Gate::new(), held: Box::pin(source.held()) }
    }

    fn poll(&mut self, cx: &Context<'_>) -> Poll<Instant> {
        self.gate.poll(cx, self.held.as_mut())
    }
}

/// Result of one turn of a session.
enum Turn {
    /// Something was read, written or due.
    Went,
    /// Much was read and more is available, but other tasks must run first.
    Yields,
    /// The connection is gone.
    Closed,
    /// The source is held; times are to be relative to this one.
    Held(Instant),
}

impl Camera<'_> {
    /// Runs one session from connecting to its end; ends it with TEARDOWN when `until` resolves.
    pub(in crate::source) async fn session<P: StreamSink, T>(
        &mut self,
        feed: &mut Feed<'_, P>,
        until: impl Future<Output = T>,
    ) -> Outcome<T> {
        let mut until = pin!(until);
        let mut address = self.address.clone();
        let mut redirects = Vec::new();
        for _ in 0..=CAMERA_REDIRECTS_MAX {
            match self.at(&address, &redirects, feed, until.as_mut()).await {
                Ok(outcome) => return outcome,
                Err(Redirected(location)) => match address.redirected(&location) {
                    Ok(to) => {
                        address = to;
                        redirects.push(location);
                    }
                    Err(fault) => return Outcome::Failed(fault),
                },
            }
        }
        Outcome::Failed(Fault::Redirects)
    }

    /// Continues another process's session; ends it with TEARDOWN when `until` resolves.
    pub(in crate::source) async fn resume<P: StreamSink, T>(
        &mut self,
        (session, sockets, reference): (CameraSession, Vec<OwnedFd>, Instant),
        feed: &mut Feed<'_, P>,
        until: impl Future<Output = T>,
    ) -> Outcome<T> {
        let until = pin!(until);
        let mut address = self.address.clone();
        for location in &session.redirects {
            match address.redirected(location) {
                Ok(to) => address = to,
                Err(fault) => return Outcome::Failed(fault),
            }
        }
        let unreachable = |error: io::Error| Fault::Unreachable(error.to_string());
        let link = taken_over(sockets, &session.datagrams).map_err(unreachable).and_then(|(tcp, datagrams)| {
            let camera = tcp.peer_addr().map_err(unreachable)?;
            let settings = self.settings(&address, camera, session.feed.had_video);
            let mut client = Client::restore(reference, session.client, settings);
            client.resume(Instant::now());
            Ok(Link { datagrams, ..Link::new(client, Stream::Plain(tcp), camera, session.redirects) })
        });
        let mut link = match link {
            Ok(link) => link,
            Err(fault) => return Outcome::Failed(fault),
        };
        feed.restore(reference, session.feed);
        let outcome = link.run((self.address, &address), session.map, feed, until, self.options).await;
        self.learned.clone_from(link.client.learned());
        outcome.unwrap_or(Outcome::Failed(Fault::Redirects))
    }

    /// Checks whether the camera can be reached and describes its stream.
    ///
    /// # Errors
    /// Why not.
    pub(in crate::source) async fn answers(&mut self) -> Result<(), Fault> {
        let limit = self.describe;
        let asked = async {
            let mut link = self.open(self.address, false).await?;
            let answer = link.asked().await;
            self.learned.clone_from(link.client.learned());
            answer
        };
        timeout(limit, asked).await.unwrap_or(Err(Fault::TimedOut(Step::Describe, limit)))
    }

    /// Runs a session at this address.
    ///
    /// # Errors
    /// The URL that the camera redirects to.
    async fn at<P: StreamSink, T>(
        &mut self,
        address: &CameraAddress,
        redirects: &[String],
        feed: &mut Feed<'_, P>,
        mut until: Pin<&mut impl Future<Output = T>>,
    ) -> Result<Outcome<T>, Redirected> {
        let link = {
            // In memory of its own: it is gone long before the session is.
            let mut open = Box::pin(self.open(address, feed.had_video));
            let both = poll_fn(|cx| {
                if let Poll::Ready(left) = until.as_mut().poll(cx) {
                    return Poll::Ready(Err(left));
                }
                open.as_mut().poll(cx).map(Ok)
            });
            match both.await {
                Err(left) => return Ok(Outcome::Left(left)),
                Ok(link) => link,
            }
        };
        let mut link = match link {
            Ok(link) => link,
            Err(fault) => return Ok(Outcome::Failed(fault)),
        };
        link.redirects = redirects.to_vec();
        let outcome = link.run((self.address, address), Vec::new(), feed, until, self.options).await;
        self.learned.clone_from(link.client.learned());
        outcome
    }

    /// Connects, with TLS if the address requires it.
    async fn open(&self, address: &CameraAddress, had_video: bool) -> Result<Link, Fault> {
        let begun = Instant::now();
        let connected = async {
            let tcp = connect(address, begun + self.describe).await?;
            if address.is_secure() {
                Ok(Stream::Tls(Box::new(tls::connect(address, &self.options.tls, tcp).await?)))
            } else {
                Ok(Stream::Plain(tcp))
            }
        };
        let stream = match timeout(self.describe, connected).await {
            Ok(stream) => stream?,
            Err(_) => return Err(Fault::TimedOut(Step::Describe, self.describe)),
        };
        let camera = stream.tcp().peer_addr().map_err(|error| Fault::Unreachable(error.to_string()))?;
        let settings = self.settings(address, camera, had_video);
        let client = Client::new(begun, Instant::now(), settings);
        Ok(Link::new(client, stream, camera, Vec::new()))
    }

    fn settings(&self, address: &CameraAddress, camera: SocketAddr, had_video: bool) -> Settings {
        Settings {
            url: address.url().to_string(),
            secure: address.is_secure(),
            credentials: address.credentials().cloned(),
            basic: self.options.basic,
            camera: camera.ip(),
            datagrams_from: self.options.datagrams_from,
            timeouts: super::Timeouts { describe: self.describe, ..self.options.timeouts },
            learned: self.learned.clone(),
            had_video,
            seed: fastrand::u64(..),
            relaying: self.options.relaying.clone(),
        }
    }
}

impl Link {
    fn new(client: Client, stream: Stream, camera: SocketAddr, redirects: Vec<String>) -> Link {
        Link {
            client,
            stream,
            camera,
            datagrams: Vec::new(),
            pass: None,
            share: Share::new(),
            read_at: None,
            pace: Pace::default(),
            told_of_pause: None,
            redirects,
        }
    }

    /// What its source does while it runs.
    fn running(&self) -> Running {
        if matches!(self.stream, Stream::Plain(_)) { Running::Session } else { Running::Tls }
    }

    /// The connections on which media arrive, as far as known.
    fn media_connections(&self) -> Vec<Connection> {
        let media = Some(self.stream.tcp().as_raw_fd()).filter(|_| self.datagrams.is_empty());
        media.and_then(Connection::of).into_iter().collect()
    }

    /// The session for another process, if it plays.
    fn deposit<P: StreamSink>(
        &mut self,
        reference: Instant,
        camera: &CameraAddress,
        map: &[TrackId],
        feed: &Feed<'_, P>,
    ) -> Option<Deposit> {
        // What waits for the next turn is not saved.
        self.send_datagrams();
        let mut sockets = vec![self.stream.tcp().as_fd().try_clone_to_owned().ok()?];
        if let Stream::Tls(_) = &self.stream {
            // The other process closes the connection before it opens the next one, which the camera may refuse otherwise.
            let session = CameraAgain { again: camera.url().to_string(), feed: feed.save(reference) };
            return Deposit::new(&session, sockets);
        }
        let client = self.client.save(reference)?;
        for socket in self.datagrams.iter().flatten().flat_map(|(rtp, rtcp)| [rtp, rtcp]) {
            sockets.push(socket.as_fd().try_clone_to_owned().ok()?);
        }
        let session = CameraSession {
            camera: camera.url().to_string(),
            redirects: self.redirects.clone(),
            client,
            map: map.to_vec(),
            feed: feed.save(reference),
            datagrams: self.datagrams.iter().map(Option::is_some).collect(),
        };
        Deposit::new(&session, sockets)
    }

    /// Runs up to the description.
    async fn asked(&mut self) -> Result<(), Fault> {
        let mut timer = pin!(sleep_until(Instant::now().into()));
        loop {
            while let Some(event) = self.client.poll_event() {
                match event {
                    Event::Described | Event::Redirected(_) => return Ok(()),
                    Event::Ended(fault) => return Err(fault),
                    _ => {}
                }
            }
            match poll_fn(|cx| self.turn(cx, timer.as_mut(), None, &mut Nowhere, &mut |_| Drained::default())).await {
                Turn::Went => self.client.tick(Instant::now(), &mut Nowhere),
                Turn::Yields => self.yields().await,
                Turn::Closed | Turn::Held(_) => self.client.closed(Instant::now()),
            }
        }
    }

    /// Others' turn.
    async fn yields(&mut self) {
        tokio::task::yield_now().await;
        self.pass = None;
    }

    async fn run<P: StreamSink, T>(
        &mut self,
        (camera, address): (&CameraAddress, &CameraAddress),
        mut map: Vec<TrackId>,
        feed: &mut Feed<'_, P>,
        mut until: Pin<&mut impl Future<Output = T>>,
        options: &CameraOptions,
    ) -> Result<Outcome<T>, Redirected> {
        // What was read before may not have reached a chunk yet.
        let (mut fresh, mut gate) = (!map.is_empty(), Gate::new());
        let _runs = Runs::new(feed.source(), self.running());
        let mut hold = Hold::new(feed.source());
        let mut timer = pin!(sleep_until(Instant::now().into()));
        // How it ends, and until when to wait for the answer to TEARDOWN.
        let mut end: Option<(Outcome<T>, Instant)> = None;
        feed.comes_by(self.media_connections());
        loop {
            while let Some(event) = self.client.poll_event() {
                if let Some(over) = self.take_event(event, address, feed, options, &mut end) {
                    return over;
                }
            }
            if let Some(outcome) = self.over(&mut end, feed.name, address).await {
                return Ok(outcome);
            }
            let due = [end.as_ref().map(|(_, until)| *until), feed.deadline()].into_iter().flatten().min();
            let turn = {
                let mut media = ToFeed { feed: &mut *feed, map: &mut map, fresh: &mut fresh };
                poll_fn(|cx| {
                    if let Poll::Ready(reference) = hold.poll(cx) {
                        return Poll::Ready(Ok(Turn::Held(reference)));
                    }
                    if end.is_none()
                        && let Poll::Ready(left) = gate.poll(cx, until.as_mut())
                    {
                        return Poll::Ready(Err(left));
                    }
                    let drained = &mut |media: &mut ToFeed<'_, '_, P>| {
                        // Pending because of tokio's budget means that another task must run, not that there is nothing more to read.
                        if *media.fresh && tokio::task::coop::has_budget_remaining() {
                            *media.fresh = false;
                            media.feed.drained(Instant::now());
                        }
                        media.feed.seen()
                    };
                    self.turn(cx, timer.as_mut(), due, &mut media, drained).map(Ok)
                })
                .await
            };
            let now = Instant::now();
            match turn {
                Err(left) => {
                    end = Some((Outcome::Left(left), now + options.timeouts.teardown));
                    self.client.leave();
                }
                Ok(Turn::Closed) => self.client.closed(now),
                Ok(Turn::Yields) => self.yields().await,
                Ok(Turn::Went) => {}
                Ok(Turn::Held(reference)) => {
                    let deposit = self.deposit(reference, camera, &map, feed).filter(|_| end.is_none());
                    feed.source().wait_held(deposit).await;
                    hold = Hold::new(feed.source());
                }
            }
            self.client.tick(now, &mut ToFeed { feed: &mut *feed, map: &mut map, fresh: &mut fresh });
            if feed.deadline().is_some_and(|due| due <= now) {
                feed.tick(now, SystemTime::now());
            }
        }
    }

    /// The result of a session that is over, or whose camera does not answer TEARDOWN.
    async fn over<T>(
        &mut self,
        end: &mut Option<(Outcome<T>, Instant)>,
        stream: &str,
        address: &CameraAddress,
    ) -> Option<Outcome<T>> {
        if self.client.is_over()
            && let Some((outcome, _)) = end.take()
        {
            self.last_words().await;
            return Some(outcome);
        }
        let (outcome, _) = end.take_if(|(_, until)| *until <= Instant::now())?;
        tracing::debug!(%stream, camera = %address, "the camera did not answer TEARDOWN");
        Some(outcome)
    }

    /// Handles an event of the client. Returns the result of the session, if it is over; `end` is how it will end, and until when to
    /// wait for the answer to TEARDOWN.
    fn take_event<P: StreamSink, T>(
        &mut self,
        event: Event,
        address: &CameraAddress,
        feed: &mut Feed<'_, P>,
        options: &CameraOptions,
        end: &mut Option<(Outcome<T>, Instant)>,
    ) -> Option<Result<Outcome<T>, Redirected>> {
        match event {
            Event::WantsPorts(track) => {
                if let Err(error) = self.open_ports(track) {
                    self.client.no_ports(error.to_string());
                }
                feed.comes_by(Vec::new());
            }
            Event::Described => {}
            Event::Path(path) => feed.tell_news(SourceNews::Path(path)),
            Event::TrackLeftOut { track, reason } => feed.track_left_out(&track, &reason),
            Event::Silent => feed.silent(Instant::now(), options.timeouts.quiet),
            Event::ForeignDatagrams(from) => warn!(
                stream = %feed.name, camera = %address, %from,
                "datagrams from another address than the camera's are ignored; set udp_from = \"{from}\" in the stream to accept them"
            ),
            Event::Redirected(location) => return Some(Err(Redirected(location))),
            Event::Ended(fault) => {
                let until = Instant::now() + TEARDOWN_AFTER_FAULT.min(options.timeouts.teardown);
                end.get_or_insert((Outcome::Failed(fault), until));
            }
            Event::TornDown => return end.take().map(|(outcome, _)| Ok(outcome)),
        }
        None
    }

    /// Writes what waits, reads what has arrived, and returns the result; pending if there is none. `due` is when the caller wants its
    /// turn, besides the client's own times. `drained` is called when there is nothing more to read, and returns what the media show
    /// then.
    fn turn<M: Media>(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
        due: Option<Instant>,
        media: &mut M,
        drained: &mut dyn FnMut(&mut M) -> Drained,
    ) -> Poll<Turn> {
        self.send_datagrams();
        let waits = !self.client.out().is_empty() || self.stream.wants_write();
        if waits && let Poll::Ready(Err(_)) = self.stream.poll_write(cx, self.client.out()) {
            return Poll::Ready(Turn::Closed);
        }
        if self.may_read(cx) {
            let read = self.read(cx, media);
            let went = self.read_datagrams(cx, media);
            match read {
                Poll::Ready(turn) => return Poll::Ready(turn),
                Poll::Pending if went => return Poll::Ready(Turn::Went),
                Poll::Pending => {
                    let seen = drained(media);
                    let in_frame = seen.in_frame || self.client.is_in_piece();
                    self.pace.drained(self.read_at.take(), Drained { in_frame, ..seen });
                }
            }
        }
        let due = [due, self.client.deadline(), self.end_of_pause(cx)].into_iter().flatten().min();
        let Some(due) = due else { return Poll::Pending };
        // The timer is only moved forward: each packet postpones most deadlines, which are checked when the timer fires.
        if timer.deadline() > due.into() || timer.is_elapsed() {
            timer.as_mut().reset(due.into());
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(Turn::Went);
            }
            timer.as_mut().reset(due.into());
        }
    }

    /// Whether the camera may be read now.
    fn may_read(&mut self, cx: &mut Context<'_>) -> bool {
        let Link { pace, stream, datagrams, .. } = self;
        let is_ready = || {
            let mut is_ready = stream.tcp().poll_read_ready(cx).is_ready();
            for (rtp, rtcp) in datagrams.iter().flatten() {
                is_ready |= rtp.poll_recv_ready(cx).is_ready();
                is_ready |= rtcp.poll_recv_ready(cx).is_ready();
            }
            is_ready
        };
        pace.may_read(Instant::now(), is_ready) && self.share.may_read(cx)
    }

    /// The end of the pause, if the session's task will not be woken then.
    fn end_of_pause(&mut self, cx: &Context<'_>) -> Option<Instant> {
        let until = self.pace.pause()?;
        if self.told_of_pause == Some(until) {
            return None;
        }
        let told = pauses::wake_at(until, cx);
        self.told_of_pause = told.then_some(until);
        (!told).then_some(until)
    }

    /// Reads the connection until there is nothing more, other tasks must run, or something has to be done.
    fn read<M: Media>(&mut self, cx: &mut Context<'_>, media: &mut M) -> Poll<Turn> {
        SCRATCH.with_borrow_mut(|scratch| {
            loop {
                let mut buf = ReadBuf::new(scratch);
                match self.stream.poll_read(cx, &mut buf) {
                    Poll::Pending => {
                        self.pass = None;
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(Turn::Closed),
                }
                let now = Instant::now();
                self.read_at = Some(now);
                let (waiting, bytes) = (self.client.out().len(), buf.filled().len());
                self.client.receive(now, buf.filled(), media);
                media.was_read(self.client.take_copied());
                let (begun, taken) = self.pass.get_or_insert((now, 0));
                *taken += bytes;
                let done = Instant::now();
                let long = done.saturating_duration_since(*begun) >= Duration::from_micros(CAMERA_PASS_MAX_US);
                let others = self.share.spent(done - now, bytes);
                if others || long || *taken >= CAMERA_PASS_BYTES_MAX {
                    return Poll::Ready(Turn::Yields);
                }
                if self.client.out().len() > waiting || self.client.has_events() {
                    return Poll::Ready(Turn::Went);
                }
            }
        })
    }

    /// Reads datagrams; returns whether there were any.
    fn read_datagrams<M: Media>(&mut self, cx: &mut Context<'_>, media: &mut M) -> bool {
        let Link { client, datagrams, read_at, share, .. } = self;
        if datagrams.is_empty() {
            return false;
        }
        let (begun, mut bytes) = (Instant::now(), 0);
        let mut any = false;
        SCRATCH.with_borrow_mut(|scratch| {
            for (track, sockets) in datagrams.iter().enumerate() {
                let Some((rtp, rtcp)) = sockets else { continue };
                for (socket, is_rtcp) in [(rtp, false), (rtcp, true)] {
                    for _ in 0..ABSORB_MAX {
                        let mut buf = ReadBuf::new(scratch);
                        let Poll::Ready(result) = socket.poll_recv_from(cx, &mut buf) else { break };
                        any = true;
                        // Errors come from ICMP about packets that opened the path; they do not concern reads.
                        if let Ok(from) = result {
                            let now = Instant::now();
                            *read_at = Some(now);
                            bytes += buf.filled().len();
                            client.datagram(now, track, is_rtcp, from.ip(), buf.filled(), media);
                            media.was_read(0);
                        }
                    }
                }
            }
        });
        if any {
            // Reading datagrams must not delay other tasks on the shard longer than reading connections.
            share.spent(begun.elapsed(), bytes);
        }
        any
    }

    /// Sends what is left at the end, as far as the connection accepts it at once.
    async fn last_words(&mut self) {
        let Link { client, stream, .. } = self;
        poll_fn(|cx| {
            let _ = stream.poll_write(cx, client.out());
            Poll::Ready(())
        })
        .await;
    }

    /// Sends the waiting datagrams, without retrying: one that the system does not accept is dropped.
    fn send_datagrams(&mut self) {
        while let Some(datagram) = self.client.poll_datagram() {
            let Some(Some((rtp, rtcp))) = self.datagrams.get(datagram.track) else { continue };
            let mut to = self.camera;
            to.set_port(datagram.port);
            let _ = if datagram.rtcp { rtcp } else { rtp }.try_send_to(&datagram.bytes, to);
        }
    }

    /// Binds a pair of ports for a track's datagrams.
    fn open_ports(&mut self, track: usize) -> io::Result<()> {
        let local = match self.stream.tcp().local_addr()?.ip() {
            // It does not include the zone of a link-local address.
            IpAddr::V6(ip) if ip.is_unicast_link_local() => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ip => ip,
        };
        let (rtp, rtcp) = datagram_pair(local)?;
        let port = rtp.local_addr()?.port();
        let pair = (UdpSocket::from_std(rtp)?, UdpSocket::from_std(rtcp)?);
        self.datagrams.resize_with(self.datagrams.len().max(track + 1), || None);
        self.datagrams[track] = Some(pair);
        self.client.ports(Instant::now(), port);
        Ok(())
    }
}
