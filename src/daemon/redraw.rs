//! A table that replaces the previous one on a terminal.

/// Tracks the area of a terminal that a table occupies, and how to replace it.
#[derive(Debug, Default)]
pub(super) struct Redraw {
    /// The table that is shown; empty if there is none.
    table: String,
    /// Rows that it takes.
    rows: usize,
    /// Columns and rows of the terminal when it was drawn.
    size: (usize, usize),
}

impl Redraw {
    /// Whether a table is shown.
    pub(super) fn is_shown(&self) -> bool {
        self.rows > 0
    }

    /// The output that replaces the table by another one, in a terminal of `size` columns and rows.
    pub(super) fn table(&mut self, text: String, size: (usize, usize)) -> String {
        let mut bytes = self.take_off(size);
        self.table = text;
        self.draw(&mut bytes, size);
        bytes
    }

    /// The output that puts whole lines above the table.
    pub(super) fn above(&mut self, lines: &str, size: (usize, usize)) -> String {
        let shown = self.is_shown();
        let mut bytes = self.take_off(size);
        bytes.push_str(lines);
        if shown {
            self.draw(&mut bytes, size);
        }
        bytes
    }

    /// The output that erases the table: move to its first line, then erase everything below (ECMA-48 CUU and ED). After a resize the
    /// positions of its lines are unknown, because some terminals rewrap their contents and others truncate them; so everything is
    /// erased.
    pub(super) fn take_off(&mut self, size: (usize, usize)) -> String {
        match std::mem::take(&mut self.rows) {
            0 => String::new(),
            _ if size != self.size => "\x1b[H\x1b[J".into(),
            rows => format!("\x1b[{rows}A\r\x1b[J"),
        }
    }

    /// No line is wider than the terminal, and the last row stays free for the cursor. So each line takes one row, and all of them can
    /// be reached.
    fn draw(&mut self, bytes: &mut String, (columns, rows): (usize, usize)) {
        self.size = (columns, rows);
        for line in self.table.lines().take(rows.saturating_sub(1)) {
            bytes.extend(line.chars().take(columns));
            bytes.push('\n');
            self.rows += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_taken_off_by_its_own_height() {
        let mut screen = Redraw::default();
        assert_eq!(screen.take_off((80, 24)), "");
        assert_eq!(screen.table("one\ntwo\nthree\n".into(), (80, 24)), "one\ntwo\nthree\n");
        assert_eq!(screen.above("said\n", (80, 24)), "\x1b[3A\r\x1b[Jsaid\none\ntwo\nthree\n");
        assert_eq!(screen.table("four\n".into(), (80, 24)), "\x1b[3A\r\x1b[Jfour\n");
        assert_eq!(screen.take_off((80, 24)), "\x1b[1A\r\x1b[J");
        assert_eq!(screen.above("said\n", (80, 24)), "said\n");
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut screen = Redraw::default();
        assert_eq!(screen.table("a long line\ntwo\nthree\nfour\n".into(), (6, 4)), "a long\ntwo\nthree\n");
        assert_eq!(screen.table(String::new(), (6, 4)), "\x1b[3A\r\x1b[J");
    }

    #[test]
    fn after_a_resize_everything_is_erased_and_the_table_fitted() {
        let mut screen = Redraw::default();
        screen.table("a long line\ntwo\n".into(), (80, 24));
        assert_eq!(screen.above("said\n", (6, 24)), "\x1b[H\x1b[Jsaid\na long\ntwo\n");
        assert_eq!(screen.table("two\n".into(), (6, 24)), "\x1b[2A\r\x1b[Jtwo\n");
    }
}
