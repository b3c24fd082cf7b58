//! What terminal and window say about the stream, and what keys do.

use crate::headless::clock_note;
use crate::picture::Picture;
use crate::player::{Screen, State};
use crate::stats::{Second, Spread, Stats};
use crate::target::Target;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Stop.
    Quit,
    /// Hold the picture, or go on.
    Freeze,
    /// Write the picture to a file.
    Snapshot,
    /// Full screen, or back.
    FullScreen,
    /// Show the numbers, or hide them.
    Numbers,
    /// Show the keys, or hide them.
    Help,
}

impl Key {
    /// The action of a character.
    pub fn of(character: char) -> Option<Self> {
        match character {
            'q' | 'Q' | '\u{1b}' | '\u{3}' => Some(Key::Quit),
            ' ' => Some(Key::Freeze),
            's' | 'S' => Some(Key::Snapshot),
            'f' | 'F' => Some(Key::FullScreen),
            'i' | 'I' => Some(Key::Numbers),
            '?' | 'h' | 'H' => Some(Key::Help),
            _ => None,
        }
    }
}

/// The keys, one a line.
pub const HELP: [&str; 6] = [
    "q      quit",
    "space  pause, resume",
    "s      write the picture to a PNG file",
    "f      full screen",
    "i      numbers on, off",
    "?      show or hide these keys",
];

/// What is shown beside the newest picture.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Numbers are shown.
    pub numbers: bool,
    /// Keys are shown.
    pub help: bool,
    /// The picture is held.
    pub frozen: bool,
    /// What the last key did, for a few seconds.
    pub note: Option<(String, std::time::Instant)>,
}

impl View {
    /// Remembers what to say for a while.
    pub fn say(&mut self, text: String) {
        self.note = Some((text, std::time::Instant::now()));
    }

    /// What to say now.
    pub fn note(&mut self) -> Option<String> {
        if self.note.as_ref().is_some_and(|(_, since)| since.elapsed() > std::time::Duration::from_secs(4)) {
            self.note = None;
        }
        self.note.as_ref().map(|(text, _)| text.clone())
    }

    /// Writes the picture to a file, and reports it.
    pub fn snapshot(&mut self, picture: Option<&Picture>, path: Option<&std::path::Path>) {
        let Some(picture) = picture else { return self.say("no picture yet".to_owned()) };
        let path = path.map_or_else(|| crate::snapshot::name_of_now().into(), std::path::Path::to_path_buf);
        match crate::snapshot::write_png(picture, &path) {
            Ok(()) => self.say(format!("written to {}", path.display())),
            Err(error) => self.say(format!("cannot write {}: {error}", path.display())),
        }
    }
}

/// Why the picture is old; none while it is new.
pub fn fault(screen: &Screen) -> Option<&str> {
    match &screen.state {
        State::Away(fault) => Some(&fault.text),
        State::Connecting | State::Playing => None,
    }
}

/// What is played, in one line.
pub fn title(target: &Target, screen: &Screen) -> String {
    let mut text = target.to_string();
    if let Some(stream) = &screen.stream {
        text += &format!("  {}", stream.codec);
        if let Some(picture) = &screen.picture {
            text += &format!(" {}x{}", picture.width(), picture.height());
        }
        text += &format!("  {}", stream.transport);
        if !stream.audio.is_empty() {
            text += &format!("  +{}", stream.audio.join("+"));
        }
    } else if screen.state == State::Connecting {
        text += "  connecting";
    }
    text
}

/// The numbers of the last second, in three lines.
pub fn numbers(stats: &Stats) -> [String; 3] {
    let second = stats.latest();
    let totals = stats.totals();
    let spread =
        |it: Option<Spread>| it.map_or_else(|| "-".to_owned(), |it| format!("{:.1}/{:.1}", it.p50_ms, it.p99_ms));
    [
        format!(
            "fps {:.1} received  {:.1} decoded  {:.1} shown   {}",
            second.fps_received,
            second.fps_decoded,
            second.fps_shown,
            bitrate(second.kbit_s)
        ),
        format!(
            "lost {}  dropped {}  errors {}  reconnects {}  audio {} packets",
            totals.lost,
            totals.dropped(),
            totals.errors,
            totals.reconnects,
            totals.audio_packets
        ),
        format!(
            "jitter {:.1}  decode {}  latency {} ms p50/p99{}",
            second.jitter_ms,
            spread(second.decode),
            spread(second.latency),
            clock_note(stats)
        ),
    ]
}

fn bitrate(kbit_s: f64) -> String {
    if kbit_s >= 10_000.0 { format!("{:.1} Mbit/s", kbit_s / 1000.0) } else { format!("{kbit_s:.0} kbit/s") }
}

/// What the graph shows of a second: its latency in ms if known, else its jitter, and the frames received.
pub fn graph_value(second: &Second) -> f64 {
    second.latency.map_or(second.jitter_ms, |it| it.p50_ms)
}

/// What [`graph_value`] is.
pub fn graph_name(stats: &Stats) -> &'static str {
    if stats.history().iter().any(|second| second.latency.is_some()) { "latency" } else { "jitter" }
}

/// Where a picture of this size goes in an area, so that its shape stays: left, top, width, height.
pub fn fit(picture: (usize, usize), area: (usize, usize)) -> (usize, usize, usize, usize) {
    let ((from_width, from_height), (width, height)) = (picture, area);
    if from_width == 0 || from_height == 0 || width == 0 || height == 0 {
        return (0, 0, 0, 0);
    }
    let (across, down) = if width * from_height <= height * from_width {
        (width, (width * from_height / from_width).max(1))
    } else {
        ((height * from_width / from_height).max(1), height)
    };
    ((width - across) / 2, (height - down) / 2, across, down)
}

/// A colour as of an old picture: grey, and half as bright.
pub fn greyed([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let grey = ((u32::from(red) * 77 + u32::from(green) * 151 + u32::from(blue) * 28) >> 9) as u8;
    [grey; 3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_shape() {
        assert_eq!(fit((640, 360), (1280, 720)), (0, 0, 1280, 720));
        assert_eq!(fit((640, 360), (640, 640)), (0, 140, 640, 360));
        assert_eq!(fit((360, 640), (640, 640)), (140, 0, 360, 640));
        assert_eq!(fit((4000, 1), (10, 10)), (0, 4, 10, 1));
        assert_eq!(fit((640, 360), (0, 10)), (0, 0, 0, 0));
    }

    #[test]
    fn old_pictures_are_grey_and_dark() {
        assert_eq!(greyed([255, 255, 255]), [127; 3]);
        let [red, green, blue] = greyed([255, 0, 0]);
        assert!(red == green && green == blue && red < 60);
    }
}
