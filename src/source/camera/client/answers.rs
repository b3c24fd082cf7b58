//! Handles a camera's responses, from the first one to that of PLAY.

use std::time::{Duration, Instant};

use super::super::fault::{Fault, Step};
use super::keepalive;
use super::track::Track;
use super::urls;
use super::{Event, Kind, Media, Offer, Pending, Session, State};
use crate::limits::TRACKS_MAX;
use crate::media::SourceTrack;
use crate::wire::relay_path;
use crate::wire::rtsp::{Answer, Channel};
use crate::wire::sdp::{self, Direction, MediaAttrs};
use crate::wire::transport;

/// Maximum number of unanswered keep-alives that are tracked; a camera that never answers is still sent more.
const PENDING_MAX: usize = 8;

impl Session {
    pub(super) fn answered(&mut self, now: Instant, answer: &Answer, media: &mut impl Media) {
        // Matched by CSeq. A response that matches none belongs to the oldest request, because some cameras number in their own way.
        let said = answer.header("CSeq").and_then(|value| value.trim().parse::<u32>().ok());
        let at = self.pending.iter().position(|pending| Some(pending.cseq) == said).unwrap_or(0);
        self.pending.drain(..at.min(self.pending.len()));
        let Some(pending) = self.pending.pop_front() else { return };
        // An interim response (1xx) is followed by the final one.
        if (100..200).contains(&answer.status) {
            return self.pending.push_front(pending);
        }
        // When the session is being ended, only TEARDOWN's response matters.
        if self.state == State::Leaving && pending.kind != Kind::Teardown {
            return;
        }
        if answer.status == 401 {
            return self.challenged(&pending, answer);
        }
        self.access.taken(pending.sent);
        if (200..300).contains(&answer.status) {
            self.take_session(answer);
        }
        match pending.kind {
            Kind::Options => self.options_answered(answer),
            Kind::Describe => self.described(answer, &pending),
            Kind::Setup => self.set_up_answered(answer),
            Kind::Play => self.play_answered(now, answer, media),
            Kind::KeepAlive(method) => self.kept_alive(answer, method),
            Kind::Teardown => self.torn_down(),
        }
    }

    /// Either the request is sent again with an answer to the challenge, or the session is over.
    fn challenged(&mut self, pending: &Pending, answer: &Answer) {
        let was_sha256 = self.access.used_sha256();
        match self.access.challenged(pending.sent, answer) {
            Ok(()) => self.ask(pending.kind, pending.url.clone(), Some(pending.sent)),
            // Media may flow anyway; if they stop, that is reported.
            Err(_) if matches!(pending.kind, Kind::KeepAlive(_)) => {}
            Err(_) if pending.kind == Kind::Teardown => self.torn_down(),
            Err(fault) => {
                // The next attempt, one of two before a long delay, uses MD5, which all cameras support.
                self.settings.learned.md5_first |= was_sha256;
                self.fail(fault);
            }
        }
    }

    /// The session's id and timeout, which some cameras send only in the response to PLAY, or never.
    fn take_session(&mut self, answer: &Answer) {
        let Some(value) = answer.header("Session") else { return };
        let mut parts = value.split(';').map(str::trim);
        let id = parts.next().unwrap_or_default();
        if self.id.is_none() && !id.is_empty() {
            self.id = Some(id.to_owned());
        }
        let timeout = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().parse::<u32>().ok())?
        });
        if let Some(timeout @ 1..) = timeout {
            self.timeout = Duration::from_secs(timeout.into());
        }
    }

    fn options_answered(&mut self, answer: &Answer) {
        for public in answer.all("Public") {
            self.keepalive.told(public);
        }
        if self.options_due.take().is_some() {
            self.describe();
        }
    }

    pub(super) fn describe(&mut self) {
        let url = self.settings.url.clone();
        self.ask(Kind::Describe, url, None);
    }

    fn described(&mut self, answer: &Answer, pending: &Pending) {
        if self.state != State::Describing {
            return;
        }
        match answer.status {
            200..=299 => {}
            300..=399 => {
                let Some(location) = answer.header("Location").filter(|location| !location.is_empty()) else {
                    return self.fail(Fault::Status(answer.status, Step::Describe));
                };
                self.events.push_back(Event::Redirected(location.to_owned()));
                self.state = State::Over;
                return self.stop_timers();
            }
            status => {
                if let Err(fault) = self.note_path(answer.header(relay_path::PATH)) {
                    return self.fail(fault);
                }
                return self.fail(Fault::Status(status, Step::Describe));
            }
        }
        let path = sdp::session_attribute(&answer.body, relay_path::PATH);
        if let Err(fault) = self.note_path(path.as_deref()) {
            return self.fail(fault);
        }
        let secure = self.settings.secure;
        let named = [answer.header("Content-Base"), answer.header("Content-Location")];
        let base = urls::base(named, &pending.url, secure);
        let control = sdp::session_control(&answer.body);
        self.aggregate = urls::controlled(&base, control.as_deref(), secure).swap_remove(0);
        self.offer_tracks(&sdp::media_attributes(&answer.body), &base);
        self.state = State::SettingUp;
        self.events.push_back(Event::Described);
        self.next_set_up();
    }

    /// The relays that the stream has passed through, if a relay answers.
    ///
    /// # Errors
    /// This relay is one of them.
    fn note_path(&mut self, path: Option<&str>) -> Result<(), Fault> {
        let (Some(path), Some(relaying)) = (path, &self.settings.relaying) else { return Ok(()) };
        if relay_path::ids(path).any(|id| *id == *relaying.own) {
            return Err(Fault::Loop(relay_path::joined(relay_path::ids(path))));
        }
        self.events.push_back(Event::Path(relay_path::joined(relay_path::ids(path)).into()));
        Ok(())
    }

    /// Collects the tracks that the description offers, and reports those that are not used.
    fn offer_tracks(&mut self, medias: &[MediaAttrs], base: &str) {
        // `sendonly` marks a back channel (ONVIF streaming specification 5.3). If all tracks are marked like this, it is a mistake.
        let back_channels = medias.iter().any(|media| media.direction != Some(Direction::SendOnly));
        for (index, media) in medias.iter().enumerate() {
            let track = source_track(media);
            let suspected = self.settings.learned.suspects.iter().filter(|suspect| **suspect == index).count() >= 2;
            let left_out = match &track {
                Err(reason) => Some(*reason),
                Ok(_) if back_channels && media.direction == Some(Direction::SendOnly) => {
                    Some("it is a back channel, for audio to the camera")
                }
                Ok(_) if suspected => Some("the camera ends the session because of it"),
                Ok(_) if self.offers.len() == TRACKS_MAX => Some("a stream can have at most 16 tracks"),
                Ok(_) => None,
            };
            if let Some(reason) = left_out {
                let encoding = media.rtpmap.as_ref().map_or("unknown", |rtpmap| &rtpmap.encoding);
                self.leave_out(format!("{index} ({} {encoding})", media.media), reason.to_owned());
                continue;
            }
            if let Ok(track) = track {
                let urls = urls::controlled(base, media.control.as_deref(), self.settings.secure);
                self.offers.push_back(Offer { index, track, urls: urls.into() });
            }
        }
    }

    fn leave_out(&mut self, track: String, reason: String) {
        self.events.push_back(Event::TrackLeftOut { track, reason });
    }

    /// Sets up the next track, or sends PLAY if there are no more.
    fn next_set_up(&mut self) {
        let Some(offer) = self.offers.pop_front() else {
            if self.tracks.is_empty() {
                let fault = self.refused.take().unwrap_or(Fault::NoTracks);
                return self.fail(fault);
            }
            self.state = State::Starting;
            self.step_due = None;
            let url = self.aggregate.clone();
            return self.ask(Kind::Play, url, None);
        };
        self.step_due = None;
        self.offer = Some((offer, None));
        if self.settings.learned.udp {
            self.events.push_back(Event::WantsPorts(self.tracks.len()));
        } else {
            self.set_up_now();
        }
    }

    /// Sends SETUP for the current offer; its datagrams are to be sent to this port and the next.
    pub(super) fn set_up(&mut self, rtp: u16) {
        if let Some((_, ports)) = &mut self.offer {
            *ports = Some(rtp);
            self.set_up_now();
        }
    }

    fn set_up_now(&mut self) {
        let url = self.offer.as_ref().and_then(|(offer, _)| offer.urls.front().cloned());
        if let Some(url) = url {
            self.step_due = None;
            self.ask(Kind::Setup, url, None);
        }
    }

    /// A track that may make the session fail every time: one that was tried after another had been set up.
    pub(super) fn suspect(&mut self) {
        if let Some((offer, _)) = &self.offer
            && self.is_dispensable(offer)
        {
            self.settings.learned.suspects.push(offer.index);
        }
    }

    fn has_video(&self) -> bool {
        self.tracks.iter().any(|track| track.source.media == "video")
    }

    fn is_dispensable(&self, offer: &Offer) -> bool {
        !self.tracks.is_empty() && (self.has_video() || offer.track.media != "video")
    }

    fn set_up_answered(&mut self, answer: &Answer) {
        let Some((mut offer, ports)) = self.offer.take() else { return };
        let udp = ports.is_some();
        if !(200..300).contains(&answer.status) {
            offer.urls.pop_front();
            // The camera may mean another form of its URL.
            if !offer.urls.is_empty() && matches!(answer.status, 400 | 404 | 454 | 459) {
                self.offer = Some((offer, ports));
                return self.set_up_now();
            }
            let fault = match answer.status {
                461 => Fault::NoTransport { udp },
                status => Fault::Status(status, Step::Setup),
            };
            // Omitting the video that the previous session had would end all players, although the camera may just be starting; so the
            // session is retried instead.
            if offer.track.media == "video" && !self.has_video() && self.settings.had_video {
                return self.fail(fault);
            }
            let name = format!("{} ({} {})", offer.index, offer.track.media, offer.track.encoding);
            self.leave_out(name, fault.to_string());
            self.refused.get_or_insert(fault);
            return self.next_set_up();
        }
        let told = answer
            .header("Transport")
            .map(transport::parse)
            .and_then(|mut specs| (!specs.is_empty()).then(|| specs.swap_remove(0)));
        let place = self.tracks.len();
        let asked = ((place * 2) as u8, (place * 2 + 1) as u8);
        let interleaved = told.as_ref().and_then(|told| told.interleaved);
        let mut track = Track::new(offer.track);
        // A camera that was asked for UDP may still insist on TCP. If TCP was requested, nothing else in the response matters.
        if !udp || interleaved.is_some() {
            let (rtp, rtcp) = interleaved.unwrap_or(asked);
            track.channels = Some((rtp, rtcp));
            self.link(place, rtp, rtcp);
        } else {
            track.ports = told.and_then(|told| told.server_port);
        }
        self.tracks.push(track);
        self.open_path(place);
        self.next_set_up();
    }

    /// A track uses these channels.
    pub(super) fn link(&mut self, place: usize, rtp: u8, rtcp: u8) {
        self.links[usize::from(rtcp)] = Some((place * 2 + 1) as u8);
        self.links[usize::from(rtp)] = Some((place * 2) as u8);
        self.assigned.extend([(rtcp, Channel::Rtcp), (rtp, Channel::Rtp(None))]);
    }

    fn play_answered(&mut self, now: Instant, answer: &Answer, media: &mut impl Media) {
        match answer.status {
            200..=299 => self.plays(now, media),
            // Without a Range; a live stream needs none.
            457 if !std::mem::replace(&mut self.without_range, true) => {
                let url = self.aggregate.clone();
                self.ask(Kind::Play, url, None);
            }
            // What flows, flows.
            _ if self.state == State::Playing => {}
            status => self.fail(Fault::Status(status, Step::Play)),
        }
    }

    /// The session plays: because of the response to PLAY, or of a packet before it.
    pub(super) fn plays(&mut self, now: Instant, media: &mut impl Media) {
        if self.state != State::Starting {
            return;
        }
        self.state = State::Playing;
        self.began = Some(now);
        self.heard = now;
        self.step_due = None;
        self.keepalive_due = Some(now + keepalive::every(self.timeout));
        self.report_due = Some(now + super::media::REPORT_EVERY / 2);
        media.playing(self.tracks.iter().map(|track| track.source.clone()).collect());
    }

    /// Sends keep-alives. As long as media flow, it does not matter whether they are answered.
    pub(super) fn keep_alive(&mut self, now: Instant) {
        self.keepalive_due = Some(now + keepalive::every(self.timeout));
        if self.out.len() > crate::limits::CAMERA_OUT_BYTES_MAX {
            return;
        }
        for method in self.keepalive.methods() {
            let url = self.aggregate.clone();
            self.ask(Kind::KeepAlive(method), url, None);
        }
        let beyond = self.pending.len().saturating_sub(PENDING_MAX);
        self.pending.drain(..beyond);
    }

    fn kept_alive(&mut self, answer: &Answer, method: keepalive::Method) {
        for public in answer.all("Public") {
            self.keepalive.told(public);
        }
        if answer.status >= 400 {
            self.keepalive.refused(method);
        }
    }

    /// When the current step times out; set when each step starts.
    pub(super) fn arm_step(&mut self, now: Instant) {
        let timeouts = &self.settings.timeouts;
        if self.step_due.is_none() {
            self.step_due = match self.state {
                State::SettingUp => Some(now + timeouts.setup),
                State::Starting => Some(now + timeouts.play),
                _ => None,
            };
        }
    }
}

/// A section of the description as a track.
///
/// # Errors
/// Why it cannot be one.
fn source_track(media: &MediaAttrs) -> Result<SourceTrack, &'static str> {
    let payload_type = media.payload_type.ok_or("it has no RTP payload type")?;
    let assigned = sdp::static_payload(payload_type);
    let (encoding, clock_rate, channels) = match (&media.rtpmap, assigned) {
        (Some(rtpmap), _) => (rtpmap.encoding.clone(), rtpmap.clock_rate, rtpmap.channels),
        (None, Some((encoding, clock_rate, channels))) => (encoding.to_owned(), clock_rate, channels),
        (None, None) => return Err("its description does not name the encoding (no a=rtpmap)"),
    };
    Ok(SourceTrack {
        media: media.media.clone(),
        encoding,
        payload_type,
        clock_rate,
        channels,
        fmtp: media.fmtp.clone(),
        attributes: media.attributes.clone(),
    })
}
