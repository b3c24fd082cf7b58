//! One session with a camera: retina at packet level, over TCP or UDP, so that any codec passes.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use futures::Stream as _;
use retina::client::{
    Described, InitialSequenceNumberPolicy, InitialTimestampPolicy, PacketItem, PlayOptions, Playing, Session,
    SessionGroup, SessionIdPolicy, SessionOptions, SetupOptions, TeardownPolicy, UnassignedChannelDataPolicy,
    UnknownRtcpSsrcPolicy,
};
use retina::rtcp::ReceivedCompoundPacket;
use tokio::time::{sleep_until, timeout};

use super::address::CameraAddress;
use super::fault::{Fault, Step};
use super::feed::Feed;
use super::loopback::Way;
use super::pipeline::{Publish, SourceTrack};
use super::supervisor::DroppedDatagrams;
use super::tunnel::{self, TlsOptions};
use super::unread::{Appetite, TooMuch, connecting, reading};
use crate::limits::TRACKS_MAX;
use crate::stream::TrackId;
use crate::sys::Connection;
use crate::wire::sdp::{self, Direction, MediaAttrs};

/// The port of an `rtsp://` URL without one.
const PORT: u16 = 554;

/// How long each step of a session may take; retina has no limits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting and DESCRIBE together.
    pub describe: Duration,
    /// Each SETUP.
    pub setup: Duration,
    /// PLAY.
    pub play: Duration,
    /// Time without a packet after which a source that is connected is told of as silent.
    pub quiet: Duration,
    /// The longest time between two packets; after it the session is given up.
    pub silence: Duration,
    /// How often a camera that comes first in the list is asked whether it is back, at least; less often if it answered and
    /// then did not play.
    pub look_back: Duration,
    /// TEARDOWN when the relay stops; it must fit into [`STOP_MAX_MS`](crate::limits::STOP_MAX_MS).
    pub teardown: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let step = Duration::from_secs(10);
        Timeouts {
            describe: step,
            setup: step,
            play: step,
            quiet: Duration::from_secs(2),
            silence: step,
            look_back: Duration::from_secs(5),
            teardown: Duration::from_secs(1),
        }
    }
}

/// How a camera's media come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullTransport {
    /// In the RTSP connection.
    #[default]
    Tcp,
    /// As datagrams.
    Udp,
    /// In the RTSP connection, or as datagrams from a camera that refuses that (461).
    Auto,
}

/// What a session is held with, in one place for all of its steps.
pub(super) struct Camera<'a> {
    pub(super) address: &'a CameraAddress,
    pub(super) timeouts: Timeouts,
    /// How its certificate is judged, if it has one.
    pub(super) tls: &'a TlsOptions,
    /// How its session differs from what the RTSP library does by itself.
    pub(super) way: Way,
    /// Tracks the session after it has been dropped, until its TEARDOWN is done.
    pub(super) group: Arc<SessionGroup>,
    /// Whether the session is to say TEARDOWN at its end.
    pub(super) says_goodbye: bool,
    /// Counts datagrams that are not passed on.
    pub(super) dropped: Arc<DroppedDatagrams>,
}

/// Tracks of the session: which of the pipeline's tracks each of retina's streams is.
type TrackMap = Vec<Option<TrackId>>;

impl Camera<'_> {
    /// Goes through one session from connecting to its end. Dropping the future (or its end) drops the session, on which retina
    /// says TEARDOWN in the background; `group` tells when it has.
    pub(super) async fn session<P: Publish>(&self, feed: &mut Feed<'_, P>) -> Fault {
        match self.begin(feed).await {
            Ok((session, map, tracks, connection)) => {
                let sounds = tracks.iter().any(|track| track.media == "video" || track.media == "audio");
                feed.connected(tracks);
                self.receive(session, &map, sounds, Appetite::new(connection), feed).await
            }
            Err(fault) => fault,
        }
    }

    /// Whether the camera can be reached and describes its stream.
    pub(super) async fn answers(&self) -> bool {
        self.describe().await.is_ok()
    }

    /// Everything up to the answer to PLAY.
    async fn begin<P: Publish>(
        &self,
        feed: &mut Feed<'_, P>,
    ) -> Result<(Session<Playing>, TrackMap, Vec<SourceTrack>, Option<Connection>), Fault> {
        let (mut session, connections, own) = self.describe().await?;
        let (map, tracks) = self.set_up(&mut session, own, feed).await?;
        let options = PlayOptions::default()
            .initial_timestamp(InitialTimestampPolicy::Permissive)
            .initial_seq(InitialSequenceNumberPolicy::Ignore)
            // The pipeline judges sender reports by itself. Any other policy takes the SSRC of a report that comes first for
            // the track's, and ends the session if the packets then have another.
            .unknown_rtcp_ssrc(UnknownRtcpSsrcPolicy::ProcessPackets);
        let play = reading(own, session.play(options));
        let session = self.step(Step::Play, self.timeouts.play, play).await?;
        feed.comes_by(if self.way.udp { Vec::new() } else { connections });
        Ok((session, map, tracks, own))
    }

    /// The session, and the connections by which it comes as far as they could be found; the library's own among them once more.
    async fn describe(&self) -> Result<(Session<Described>, Vec<Connection>, Option<Connection>), Fault> {
        let teardown = if self.says_goodbye { TeardownPolicy::Always } else { TeardownPolicy::Never };
        let options = SessionOptions::default()
            .creds(self.address.credentials().cloned())
            .user_agent(concat!("rtsprelay/", env!("CARGO_PKG_VERSION")).to_owned())
            .session_group(self.group.clone())
            .session_id(SessionIdPolicy::UseFirst)
            .unassigned_channel_data(UnassignedChannelDataPolicy::Ignore)
            .teardown(teardown);
        let limit = self.timeouts.describe;
        let mut connections = Vec::new();
        let url = if self.address.is_secure() || self.way != Way::default() {
            let opened = tunnel::open(self.address, self.tls, self.way, self.dropped.clone());
            let (url, beyond) = match timeout(limit, opened).await {
                Ok(opened) => opened?,
                Err(_) => return Err(Fault::TimedOut(Step::Describe, limit)),
            };
            connections.extend(beyond);
            url
        } else {
            self.address.url().clone()
        };
        let mut found = None;
        let described = async {
            let (described, made) = connecting(url.port().unwrap_or(PORT), Session::describe(url, options)).await?;
            found = made;
            Ok(described)
        };
        let session = self.step(Step::Describe, limit, described).await?;
        connections.extend(found);
        Ok((session, connections, found))
    }

    /// Sets up every track that can be; one that the camera refuses is left out if another is not.
    ///
    /// Leaving out the picture that the last session had would end all players over what may be a camera that is still
    /// starting, so that is tried again instead.
    async fn set_up<P: Publish>(
        &self,
        session: &mut Session<Described>,
        connection: Option<Connection>,
        feed: &mut Feed<'_, P>,
    ) -> Result<(TrackMap, Vec<SourceTrack>), Fault> {
        let offers = offers(session);
        let (mut map, mut tracks) = (vec![None; offers.len()], Vec::new());
        let mut refused = None;
        for (index, offer) in offers.into_iter().enumerate() {
            let name = format!("{} ({} {})", index, offer.track.media, offer.track.encoding);
            if let Some(reason) = offer.left_out {
                feed.track_left_out(&name, reason);
                continue;
            }
            if tracks.len() == TRACKS_MAX {
                feed.track_left_out(&name, "a stream has 16 tracks at most");
                continue;
            }
            if feed.suspects.iter().filter(|suspect| **suspect == index).count() >= 2 {
                feed.track_left_out(&name, "the camera breaks off over it");
                continue;
            }
            let video = offer.track.media == "video";
            let has_video = tracks.iter().any(|track: &SourceTrack| track.media == "video");
            let dispensable = !tracks.is_empty() && (has_video || !video);
            let limit = self.timeouts.setup;
            match timeout(limit, reading(connection, session.setup(index, SetupOptions::default()))).await {
                Ok(Err(TooMuch)) => return Err(Fault::TooMuch(Step::Setup)),
                Ok(Ok(Ok(()))) => {
                    map[index] = Some(TrackId(tracks.len() as u8));
                    tracks.push(offer.track);
                }
                Ok(Ok(Err(error))) => {
                    let fault = match error.status_code() {
                        Some(461) => Fault::NoTransport { udp: self.way.udp },
                        _ => Fault::from_retina(&error, Step::Setup, self.address),
                    };
                    // With no answer, or one that does not parse, the connection is of no use for the other tracks either.
                    if error.status_code().is_none() {
                        feed.suspects.extend(dispensable.then_some(index));
                        return Err(fault);
                    }
                    let curable = fault.is_of_form() && !self.way.mended;
                    if curable || video && !has_video && feed.had_video {
                        return Err(fault);
                    }
                    feed.track_left_out(&name, &fault.to_string());
                    refused = Some(fault);
                }
                Err(_) => {
                    feed.suspects.extend(dispensable.then_some(index));
                    return Err(Fault::TimedOut(Step::Setup, limit));
                }
            }
        }
        if tracks.is_empty() { Err(refused.unwrap_or(Fault::NoTracks)) } else { Ok((map, tracks)) }
    }

    /// Hands packets on until the session fails.
    async fn receive<P: Publish>(
        &self,
        mut session: Session<Playing>,
        map: &TrackMap,
        sounds: bool,
        mut appetite: Appetite,
        feed: &mut Feed<'_, P>,
    ) -> Fault {
        let silence = self.timeouts.silence;
        let quiet = self.timeouts.quiet.min(silence / 2);
        let mut heard = Instant::now();
        let mut timer = pin!(sleep_until((heard + quiet).into()));
        let mut fresh = false;
        loop {
            let mut woken = false;
            let item = poll_fn(|cx| {
                if let Poll::Ready(item) = Pin::new(&mut session).poll_next(cx) {
                    return Poll::Ready(Ok(Some(item)));
                }
                // Woken, and nothing came of it: the rest of a packet is not there yet, or something else is being sent.
                if std::mem::replace(&mut woken, true) && appetite.is_too_much() {
                    return Poll::Ready(Err(TooMuch));
                }
                // Pending without budget says that it is another task's turn, not that there is nothing more to read.
                if fresh && tokio::task::coop::has_budget_remaining() {
                    fresh = false;
                    feed.drained(Instant::now());
                }
                let silent = heard + if feed.is_silent() { silence } else { quiet };
                let deadline = feed.deadline().map_or(silent, |deadline| deadline.min(silent)).into();
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                timer.as_mut().poll(cx).map(|()| Ok(None))
            })
            .await;
            let Ok(item) = item else { return Fault::TooMuch(Step::Playing) };
            if item.is_some() {
                appetite.fed();
            }
            match item {
                Some(Some(Ok(PacketItem::Rtp(packet)))) => {
                    if let Some(track) = map[packet.stream_id()] {
                        let received = packet.ctx().received();
                        feed.packet(track, received, packet.raw());
                        (heard, fresh) = (received, true);
                    }
                }
                Some(Some(Ok(PacketItem::Rtcp(compound)))) => {
                    if let (Some(track), Some(report)) = (map[compound.stream_id()], sender_report(&compound)) {
                        feed.sender_report(track, compound.ctx().received(), report);
                        // An encoder can hang while its RTCP goes on. ONVIF metadata may be still for long.
                        if !sounds {
                            heard = compound.ctx().received();
                        }
                    }
                }
                Some(Some(Ok(_))) => {}
                Some(Some(Err(error))) => return Fault::from_retina(&error, Step::Playing, self.address),
                Some(None) => return Fault::Closed(Step::Playing),
                None => {
                    let now = Instant::now();
                    if now >= heard + silence {
                        return Fault::Silent(silence);
                    }
                    if now >= heard + quiet && !feed.is_silent() {
                        feed.silent(now, quiet);
                    }
                    feed.tick(now, SystemTime::now());
                }
            }
        }
    }

    /// `future` within `limit`.
    async fn step<T>(
        &self,
        step: Step,
        limit: Duration,
        future: impl Future<Output = Result<Result<T, retina::Error>, TooMuch>>,
    ) -> Result<T, Fault> {
        match timeout(limit, future).await {
            Ok(Ok(result)) => result.map_err(|error| Fault::from_retina(&error, step, self.address)),
            Ok(Err(TooMuch)) => Err(Fault::TooMuch(step)),
            Err(_) => Err(Fault::TimedOut(step, limit)),
        }
    }
}

/// The fields of a sender report that are passed on (RFC 3550 section 6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) ntp: u64,
    pub(super) rtp_time: u32,
}

/// The sender report that a compound packet begins with, if it does.
fn sender_report(compound: &ReceivedCompoundPacket) -> Option<Report> {
    let report = compound.pkts().next()?.as_sender_report().ok()??;
    Some(Report { ntp: report.ntp_timestamp().0, rtp_time: report.rtp_timestamp() })
}

/// A track of the camera's description.
struct Offer {
    track: SourceTrack,
    /// Why it is not to be set up.
    left_out: Option<&'static str>,
}

/// What the camera's description offers, for each of retina's streams: what retina has parsed, with the attributes that it does
/// not keep from the SDP itself.
fn offers(session: &Session<Described>) -> Vec<Offer> {
    let medias = sdp::media_attributes(session.sdp());
    // `sendonly` marks a back channel (ONVIF streaming specification 5.3). Where everything is marked so, it is a mistake.
    let back_channels = medias.iter().any(|media| media.direction != Some(Direction::SendOnly));
    let mut medias = medias.iter();
    session
        .streams()
        .iter()
        .map(|stream| {
            // Retina leaves out sections that it cannot parse, but keeps the order.
            let media = medias.find(|media| {
                media.media.eq_ignore_ascii_case(stream.media())
                    && media.payload_type == Some(stream.rtp_payload_type())
            });
            let left_out = if stream.clock_rate_hz() == 0 {
                Some("its clock rate is 0")
            } else if back_channels && media.is_some_and(|media| media.direction == Some(Direction::SendOnly)) {
                Some("it is a back channel, for sound to the camera")
            } else {
                None
            };
            Offer { track: source_track(stream, media), left_out }
        })
        .collect()
}

/// One of retina's streams as the pipeline wants it.
fn source_track(stream: &retina::client::Stream, media: Option<&MediaAttrs>) -> SourceTrack {
    let spelled = media.and_then(|media| media.rtpmap.as_ref()).map(|rtpmap| rtpmap.encoding.clone());
    let assigned = sdp::static_payload(stream.rtp_payload_type()).map(|(encoding, ..)| encoding.to_owned());
    SourceTrack {
        media: stream.media().to_owned(),
        encoding: spelled.or(assigned).unwrap_or_else(|| stream.encoding_name().to_ascii_uppercase()),
        payload_type: stream.rtp_payload_type(),
        clock_rate: stream.clock_rate_hz(),
        channels: stream.channels().map(Into::into),
        fmtp: media.and_then(|media| media.fmtp.clone()),
        attributes: media.map(|media| media.attributes.clone()).unwrap_or_default(),
    }
}
