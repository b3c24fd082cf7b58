//! The picture in a terminal: half blocks in 24-bit colour, two pixels to a cell, and status lines under it.

use std::io::{self, Read as _, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::Ending;
use crate::picture::Picture;
use crate::player::{Player, Screen, State};
use crate::stats::Stats;
use crate::status::{self, HELP, Key, View};
use crate::target::Target;

/// The shortest time between two pictures, here and over SSH, where more would only pile up on the way.
const PICTURE_EVERY: Duration = Duration::from_millis(33);
const PICTURE_EVERY_SSH: Duration = Duration::from_millis(66);

/// What to watch for.
#[derive(Clone, Debug)]
pub struct Options {
    /// When to stop.
    pub until: Option<Instant>,
    /// Where `s` writes.
    pub snapshot: Option<std::path::PathBuf>,
    /// Starts without status lines.
    pub fullscreen: bool,
}

/// Shows until the end.
pub fn run(target: &Target, player: &Arc<Player>, options: &Options, stop: &dyn Fn() -> bool) -> io::Result<Ending> {
    let _raw = RawMode::enter();
    let keys = keys();
    let mut out = io::stdout().lock();
    // The other screen, no cursor, no line wrap.
    out.write_all(b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
    let ending = watch(target, player, options, stop, &keys, &mut out);
    out.write_all(b"\x1b[?7h\x1b[?25h\x1b[0m\x1b[?1049l")?;
    out.flush()?;
    ending
}

fn watch(
    target: &Target,
    player: &Arc<Player>,
    options: &Options,
    stop: &dyn Fn() -> bool,
    keys: &Receiver<Key>,
    out: &mut impl Write,
) -> io::Result<Ending> {
    let ssh = std::env::var_os("SSH_CONNECTION").is_some();
    let every = if ssh { PICTURE_EVERY_SSH } else { PICTURE_EVERY };
    let mut view = View { numbers: !options.fullscreen, ..View::default() };
    let mut canvas = Canvas::default();
    let mut screen = player.screen();
    let (mut drawn, mut drawn_at) = (0, None::<Instant>);
    loop {
        let mut fresh = false;
        for key in keys.try_iter() {
            fresh = true;
            match key {
                Key::Quit => return Ok(Ending::Asked),
                Key::Freeze => view.frozen = !view.frozen,
                Key::Snapshot => view.snapshot(screen.picture.as_deref(), options.snapshot.as_deref()),
                Key::FullScreen | Key::Numbers => view.numbers = !view.numbers,
                Key::Help => view.help = !view.help,
            }
        }
        if stop() {
            return Ok(Ending::Asked);
        }
        if player.complete() {
            return Ok(Ending::Complete);
        }
        if options.until.is_some_and(|until| Instant::now() >= until) {
            return Ok(Ending::TimeOver);
        }
        let new_second = player.stats().roll(Instant::now());
        let size = size();
        let new_picture = !view.frozen && screen.number != drawn;
        if new_picture || new_second || fresh || drawn_at.is_none() || canvas.size != size {
            let mut text = Vec::new();
            if view.numbers || view.help || view.note().is_some() || status::fault(&screen).is_some() {
                text = lines(target, &screen, &player.stats(), &mut view, size.0);
            }
            canvas.draw(size, &screen, &text, status::fault(&screen).is_some(), out)?;
            if new_picture {
                player.stats().shown();
                drawn = screen.number;
            }
            drawn_at = Some(Instant::now());
        }
        // Not faster than a terminal can follow; what comes meanwhile is never shown.
        let pause = drawn_at.map_or(Duration::ZERO, |at| every.saturating_sub(at.elapsed()));
        std::thread::sleep(pause);
        let next = player.wait(drawn, &screen.state, Duration::from_millis(50));
        if !view.frozen {
            screen = next;
        } else {
            screen.state = next.state;
        }
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    match tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (usize::from(size.ws_col), usize::from(size.ws_row)),
        _ => (80, 24),
    }
}

/// The lines under the picture.
fn lines(target: &Target, screen: &Screen, stats: &Stats, view: &mut View, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    if view.help {
        lines.extend(HELP.iter().map(|&line| line.to_owned()));
    }
    if let Some(note) = view.note() {
        lines.push(note);
    }
    if let Some(fault) = status::fault(screen) {
        lines.push(format!("\x1b[1;31m{fault}"));
    }
    if view.numbers {
        let mut title = status::title(target, screen);
        if view.frozen {
            title += "  HELD";
        }
        if screen.state == State::Playing || status::fault(screen).is_none() {
            title += "   (? for keys)";
        }
        lines.push(format!("\x1b[1m{title}"));
        lines.extend(status::numbers(stats));
        lines.push(graph(stats, width));
    }
    lines
}

/// The last minute, a character a second.
fn graph(stats: &Stats, width: usize) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<f64> = stats.history().iter().map(status::graph_value).collect();
    let most = values.iter().copied().fold(1.0, f64::max);
    let name = status::graph_name(stats);
    let room = width.saturating_sub(name.len() + 20);
    let bars: String = values
        .iter()
        .skip(values.len().saturating_sub(room))
        .map(|value| BARS[((value / most * 8.0).ceil() as usize).min(8)])
        .collect();
    format!("{name} {bars}│ {most:.0} ms")
}

/// One character cell: two pixels, or a character.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Cell {
    above: [u8; 3],
    below: [u8; 3],
}

/// What is on the terminal, so that only what changed is sent.
#[derive(Default)]
struct Canvas {
    size: (usize, usize),
    picture_rows: usize,
    cells: Vec<Cell>,
}

impl Canvas {
    fn draw(
        &mut self,
        size: (usize, usize),
        screen: &Screen,
        text: &[String],
        grey: bool,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let (columns, rows) = size;
        let text = &text[text.len().saturating_sub(rows)..];
        let picture_rows = rows - text.len();
        let mut bytes = Vec::with_capacity(1 << 16);
        // What comes is to be shown in one go, where terminals can.
        bytes.extend_from_slice(b"\x1b[?2026h");
        let mut known = true;
        if self.size != size || self.picture_rows != picture_rows {
            bytes.extend_from_slice(b"\x1b[0m\x1b[2J");
            *self = Canvas { size, picture_rows, cells: Vec::new() };
            known = false;
        }
        let cells = cells(screen.picture.as_deref(), columns, picture_rows, grey);
        emit(&cells, if known { &self.cells } else { &[] }, columns, &mut bytes);
        self.cells = cells;
        for (index, line) in text.iter().enumerate() {
            let row = picture_rows + index + 1;
            write!(bytes, "\x1b[{row};1H\x1b[0m{}\x1b[0m\x1b[K", cut(line, columns))?;
        }
        bytes.extend_from_slice(b"\x1b[?2026l");
        out.write_all(&bytes)?;
        out.flush()
    }
}

/// `line` without what is past `columns`; escape sequences take no room.
fn cut(line: &str, columns: usize) -> String {
    let (mut out, mut room, mut escape) = (String::new(), columns, false);
    for character in line.chars() {
        if character == '\x1b' {
            escape = true;
        } else if !escape {
            if room == 0 {
                continue;
            }
            room -= 1;
        } else if character.is_ascii_alphabetic() {
            escape = false;
        }
        out.push(character);
    }
    out
}

/// The picture as cells, each pixel the mean of four samples.
fn cells(picture: Option<&Picture>, columns: usize, rows: usize, grey: bool) -> Vec<Cell> {
    let mut cells = vec![Cell::default(); columns * rows];
    let Some(picture) = picture else { return cells };
    let (left, top, width, height) = status::fit((picture.width(), picture.height()), (columns, rows * 2));
    if width == 0 || height == 0 {
        return cells;
    }
    let mut sums = vec![[0u16; 3]; width * height];
    picture.scale(width * 2, height * 2, |x, y, colour| {
        let sum = &mut sums[y / 2 * width + x / 2];
        for (part, value) in sum.iter_mut().zip(colour) {
            *part += u16::from(value);
        }
    });
    for (index, sum) in sums.iter().enumerate() {
        let (x, y) = (left + index % width, top + index / width);
        let mut colour = sum.map(|part| (part / 4) as u8);
        if grey {
            colour = status::greyed(colour);
        }
        let cell = &mut cells[y / 2 * columns + x];
        if y % 2 == 0 {
            cell.above = colour;
        } else {
            cell.below = colour;
        }
    }
    cells
}

/// Writes the cells that differ from `before`; all, if that is empty.
fn emit(cells: &[Cell], before: &[Cell], columns: usize, out: &mut Vec<u8>) {
    let (mut at, mut above, mut below) = (usize::MAX, None, None);
    for (index, cell) in cells.iter().enumerate() {
        if before.get(index) == Some(cell) {
            continue;
        }
        if at != index || index % columns == 0 {
            let _ = write!(out, "\x1b[{};{}H", index / columns + 1, index % columns + 1);
        }
        if above != Some(cell.above) {
            let [red, green, blue] = cell.above;
            let _ = write!(out, "\x1b[38;2;{red};{green};{blue}m");
            above = Some(cell.above);
        }
        if below != Some(cell.below) {
            let [red, green, blue] = cell.below;
            let _ = write!(out, "\x1b[48;2;{red};{green};{blue}m");
            below = Some(cell.below);
        }
        out.extend_from_slice("▀".as_bytes());
        at = index + 1;
    }
    out.extend_from_slice(b"\x1b[0m");
}

/// Keys as they are pressed, read on a thread that ends with the program.
fn keys() -> Receiver<Key> {
    let (send, keys) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            // An escape byte alone is a key; with more after it, it is an arrow key or similar.
            if buffer[0] == 0x1b && count > 1 {
                continue;
            }
            for key in buffer[..count].iter().filter_map(|&byte| Key::of(char::from(byte))) {
                if send.send(key).is_err() {
                    return;
                }
            }
        }
    });
    keys
}

/// Keys come at once and unseen, until this is dropped.
struct RawMode {
    before: Option<Termios>,
}

impl RawMode {
    fn enter() -> Self {
        let before = tcgetattr(rustix::stdio::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            raw.special_codes[SpecialCodeIndex::VMIN] = 1;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw);
        }
        RawMode { before }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_sent() {
        let cells = vec![Cell::default(); 8];
        let mut changed = cells.clone();
        changed[5].above = [1, 2, 3];
        let mut out = Vec::new();
        emit(&changed, &cells, 4, &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text, "\x1b[2;2H\x1b[38;2;1;2;3m\x1b[48;2;0;0;0m▀\x1b[0m");
    }

    #[test]
    fn lines_are_cut_at_the_edge_but_for_their_colours() {
        assert_eq!(cut("\x1b[1mabcdef\x1b[0m", 3), "\x1b[1mabc\x1b[0m");
        assert_eq!(cut("äöü", 2), "äö");
    }
}
