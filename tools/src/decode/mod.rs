//! From frames to pictures.

mod h264;
mod h265;
mod jpeg;
mod sps;

pub use h264::H264;
pub use h265::H265;
pub use jpeg::Jpeg;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::frame::{Codec, Frame};
use crate::picture::{Picture, PictureInfo, Pixels};

/// Pictures larger than this, in pixels, are not decoded: damaged headers ask for anything.
pub const PIXELS_MAX: u64 = 8192 * 4352;

/// How long nothing is decoded for want of a keyframe, before it is tried without: some cameras refresh their picture bit by
/// bit and never send one.
const KEYFRAME_WAIT_MAX: Duration = Duration::from_secs(10);

/// Frames inside a decoder at most; one that keeps more has lost them.
const INSIDE_MAX: usize = 32;

/// What the codec's own decoder must do.
trait Backend: Send {
    /// Decodes one frame. Pictures that are ready go to `out`, in the order to show them.
    fn decode(&mut self, data: &[u8], out: &mut dyn FnMut(Pixels)) -> Result<(), DecodeError>;
}

/// Why a frame could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The codec's decoder cannot be created; in its own words.
    #[error("openh264 does not start: {0}")]
    Start(String),
    /// The sequence parameter set is invalid.
    #[error("H.264: unreadable sequence parameter set")]
    ParameterSet,
    /// The picture has more than [`PIXELS_MAX`] pixels.
    #[error("H.264: a picture of {0}x{1} is too large")]
    TooLarge(u32, u32),
    /// The decoder rejected the frame; the codec, and the decoder's own words.
    #[error("{0}: {1}")]
    Rejected(&'static str, String),
    /// The decoder returned an incomplete picture.
    #[error("{0}: no complete picture")]
    Incomplete(&'static str),
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It went through the decoder.
    Decoded,
    /// Parts of it are lost, so it was not decoded.
    Damaged,
    /// It was passed over until the next keyframe.
    WaitsForKeyframe,
    /// It could not be decoded.
    Failed(DecodeError),
}

/// A decoder with what a stream from a network needs around it: it starts at keyframes, and again after loss and errors.
pub struct Decoder {
    codec: Codec,
    backend: Option<Box<dyn Backend>>,
    /// Since when frames are passed over.
    waiting_since: Option<Instant>,
    waiting: bool,
    /// What is known of the frames inside the decoder, by timestamp.
    inside: VecDeque<PictureInfo>,
}

impl Decoder {
    /// A decoder for `codec`.
    pub fn new(codec: Codec) -> Self {
        Decoder { codec, backend: None, waiting_since: None, waiting: true, inside: VecDeque::new() }
    }

    /// Forgets everything: the next frame decoded is a keyframe.
    pub fn reset(&mut self) {
        self.backend = None;
        self.inside.clear();
        self.waiting = true;
        self.waiting_since = None;
    }

    /// Says that frames were left out before the next one.
    pub fn skipped(&mut self) {
        self.waiting = true;
    }

    /// Decodes one frame, and hands pictures that are ready to `out`.
    pub fn decode(&mut self, frame: &Frame, out: &mut dyn FnMut(Picture)) -> Outcome {
        if frame.damaged {
            self.waiting = true;
            self.waiting_since.get_or_insert(frame.arrived);
            return Outcome::Damaged;
        }
        self.waiting |= frame.after_loss;
        if self.waiting && !frame.keyframe {
            let since = *self.waiting_since.get_or_insert(frame.arrived);
            if frame.arrived.saturating_duration_since(since) < KEYFRAME_WAIT_MAX {
                return Outcome::WaitsForKeyframe;
            }
        }
        (self.waiting, self.waiting_since) = (false, None);
        let backend = match &mut self.backend {
            Some(backend) => backend,
            none => match backend(self.codec) {
                Ok(backend) => none.insert(backend),
                Err(reason) => return Outcome::Failed(reason),
            },
        };
        let info = PictureInfo::new(frame);
        let at = self.inside.partition_point(|other| other.timestamp <= info.timestamp);
        self.inside.insert(at, info);
        let inside = &mut self.inside;
        let mut pictures = 0;
        let result = backend.decode(&frame.data, &mut |pixels| {
            pictures += 1;
            // Pictures come out in the order to show them, which is that of their timestamps.
            if let Some(info) = inside.pop_front() {
                out(Picture { pixels, info });
            }
        });
        match result {
            Ok(()) => {
                while self.inside.len() > INSIDE_MAX {
                    self.inside.pop_front();
                }
                Outcome::Decoded
            }
            Err(reason) => {
                // After an error nothing of the decoder's state is to be trusted.
                self.reset();
                self.waiting_since = Some(frame.arrived);
                Outcome::Failed(reason)
            }
        }
    }
}

fn backend(codec: Codec) -> Result<Box<dyn Backend>, DecodeError> {
    Ok(match codec {
        Codec::H264 => Box::new(H264::new()?),
        Codec::H265 => Box::new(H265::new()),
        Codec::Jpeg => Box::new(Jpeg),
    })
}
