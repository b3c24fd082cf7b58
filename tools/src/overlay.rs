//! Text and a graph over a picture, drawn into 32-bit pixels.

use spleen_font::{FONT_8X16, FONT_12X24, PSF2Font};

use crate::stats::{HISTORY_SECONDS, Stats};
use crate::status;

/// Pixels to draw on: `0x00RRGGBB`, row by row without gaps.
pub struct Canvas<'a> {
    /// The pixels.
    pub pixels: &'a mut [u32],
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// A colour as a pixel.
pub fn pixel([red, green, blue]: [u8; 3]) -> u32 {
    u32::from(red) << 16 | u32::from(green) << 8 | u32::from(blue)
}

impl Canvas<'_> {
    /// Darkens a rectangle to a quarter, so that text on it can be read.
    fn shade(&mut self, left: usize, top: usize, width: usize, height: usize) {
        for row in top..(top + height).min(self.height) {
            let (from, to) = (left.min(self.width), (left + width).min(self.width));
            for pixel in &mut self.pixels[row * self.width + from..row * self.width + to] {
                *pixel = *pixel >> 2 & 0x3f_3f3f;
            }
        }
    }

    fn fill(&mut self, left: usize, top: usize, width: usize, height: usize, colour: u32) {
        for row in top.min(self.height)..(top + height).min(self.height) {
            let (from, to) = (left.min(self.width), (left + width).min(self.width));
            self.pixels[row * self.width + from..row * self.width + to].fill(colour);
        }
    }
}

/// A line of text and its colour.
pub type Line = (String, [u8; 3]);

/// White, for most lines.
pub const WHITE: [u8; 3] = [255, 255, 255];
/// For what is wrong.
pub const RED: [u8; 3] = [255, 96, 80];
/// For what is less important.
pub const GREY: [u8; 3] = [190, 190, 190];

/// A font of one of two sizes.
pub struct Font {
    font: PSF2Font<'static>,
    width: usize,
    height: usize,
}

impl Font {
    /// The font for a canvas of this width: the smaller one where there is little room.
    pub fn for_width(width: usize) -> Self {
        let (data, width, height) = if width < 900 { (FONT_8X16, 8, 16) } else { (FONT_12X24, 12, 24) };
        Font { font: PSF2Font::new(data).expect("the font is part of the program"), width, height }
    }

    fn text(&mut self, canvas: &mut Canvas<'_>, left: usize, top: usize, text: &str, colour: u32) {
        for (index, character) in text.chars().enumerate() {
            let (x, mut buffer) = (left + index * self.width, [0; 4]);
            if x + self.width > canvas.width {
                break;
            }
            let glyph = self.font.glyph_for_utf8(character.encode_utf8(&mut buffer).as_bytes());
            let Some(glyph) = glyph else { continue };
            for (row, bits) in glyph.enumerate().take(canvas.height.saturating_sub(top)) {
                for (column, _) in bits.enumerate().filter(|(_, on)| *on).take_while(|(column, _)| *column < self.width)
                {
                    canvas.pixels[(top + row) * canvas.width + x + column] = colour;
                }
            }
        }
    }

    /// Draws lines in a dark box at the top left, and returns the row under it.
    pub fn lines(&mut self, canvas: &mut Canvas<'_>, top: usize, lines: &[Line]) -> usize {
        let longest = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
        let pad = self.width;
        canvas.shade(0, top, longest * self.width + 2 * pad, lines.len() * self.height + pad);
        for (index, (line, colour)) in lines.iter().enumerate() {
            self.text(canvas, pad, top + pad / 2 + index * self.height, line, pixel(*colour));
        }
        top + lines.len() * self.height + pad
    }

    /// Draws the graph of the last minute under `top`: median latency in green, its 99th percentile in orange above it.
    pub fn graph(&mut self, canvas: &mut Canvas<'_>, top: usize, stats: &Stats) {
        let (bar, height, pad) = ((self.width / 2).max(3), self.height * 3, self.width);
        let width = HISTORY_SECONDS * bar;
        canvas.shade(0, top, width + 2 * pad + 8 * self.width, height + pad);
        let upper = |second: &crate::stats::Second| second.latency.map_or(second.jitter_ms, |it| it.p99_ms);
        let most = stats.history().iter().map(upper).fold(1.0, f64::max);
        let pixels = |value: f64| ((value / most * height as f64).ceil() as usize).min(height);
        let first = HISTORY_SECONDS - stats.history().len();
        for (index, second) in stats.history().iter().enumerate() {
            let left = pad + (first + index) * bar;
            for (value, colour) in [(upper(second), 0x00c0_7020), (status::graph_value(second), 0x0040_c060)] {
                let tall = pixels(value);
                canvas.fill(left, top + pad / 2 + height - tall, bar - 1, tall, colour);
            }
        }
        let label = format!("{most:.0} ms");
        self.text(canvas, pad + width + pad / 2, top + pad / 2, &label, pixel(GREY));
        let name = status::graph_name(stats);
        self.text(canvas, pad + width + pad / 2, top + pad / 2 + height - self.height, name, pixel(GREY));
    }
}
