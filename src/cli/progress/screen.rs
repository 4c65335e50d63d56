//! The lines at the bottom of a terminal that change, and those above that stay. Knows columns and rows, no stage.
//!
//! No alternate screen and no saved cursor: the block is erased upwards from where the cursor stands and written anew, in one
//! write. So it works inside tmux and screen, and what was written stays in their history.

use std::io::Write;

use console::{measure_text_width, truncate_str};

/// What can be drawn on.
pub(super) trait Surface: Send {
    /// Rows and columns, now.
    fn size(&self) -> (usize, usize);
    /// Whether a window that became narrower broke the lines that no longer fit.
    fn reflows(&self) -> bool {
        true
    }
    /// Takes text and escape codes.
    fn write(&mut self, text: &str);
}

/// Standard error, which is a terminal.
pub(super) struct Stderr {
    term: console::Term,
    reflows: bool,
}

impl Stderr {
    pub(super) fn new() -> Self {
        // GNU screen and xterm cut lines instead of breaking them.
        let cuts = ["STY", "XTERM_VERSION"].iter().any(|name| std::env::var_os(name).is_some());
        let inside = std::env::var_os("TMUX").is_some();
        Self { term: console::Term::stderr(), reflows: inside || !cuts }
    }
}

impl Surface for Stderr {
    fn size(&self) -> (usize, usize) {
        let (rows, columns) = self.term.size();
        (rows.into(), columns.into())
    }

    fn reflows(&self) -> bool {
        self.reflows
    }

    fn write(&mut self, text: &str) {
        // A terminal that went away is no reason to stop the work.
        let _gone = self.term.write_all(text.as_bytes()).and_then(|()| self.term.flush());
    }
}

/// A terminal with a block of lines at its bottom.
pub(super) struct Screen {
    surface: Box<dyn Surface>,
    /// The widths of the lines that stand there.
    shown: Vec<usize>,
}

impl Screen {
    pub(super) fn new(surface: Box<dyn Surface>) -> Self {
        Self { surface, shown: Vec::new() }
    }

    pub(super) fn size(&self) -> (usize, usize) {
        match self.surface.size() {
            (0, _) | (_, 0) => (24, 80),
            size => size,
        }
    }

    /// Writes lines that stay, and replaces the block below them.
    pub(super) fn draw(&mut self, above: Option<&str>, block: &[String]) {
        let (_, columns) = self.size();
        let mut out = self.erase(columns);
        for line in above.into_iter().flat_map(|text| text.split('\n')) {
            out.push_str(line);
            out.push_str("\r\n");
        }
        // The last column stays free: terminals differ in where the cursor is after it.
        let cut = |line: &String| truncate_str(line, columns - 1, "…").into_owned();
        let block: Vec<String> = block.iter().map(cut).collect();
        self.shown = block.iter().map(|line| measure_text_width(line)).collect();
        out.push_str(&block.join("\r\n"));
        if !out.is_empty() {
            self.surface.write(&out);
        }
    }

    /// The codes that take the block away. The window may have become narrower since it was drawn.
    fn erase(&self, columns: usize) -> String {
        if self.shown.is_empty() {
            return String::new();
        }
        let height = |width: &usize| if self.surface.reflows() { width.div_ceil(columns).max(1) } else { 1 };
        let up = self.shown.iter().map(height).sum::<usize>() - 1;
        let up = if up > 0 { format!("\x1b[{up}A") } else { String::new() };
        format!("\r{up}\x1b[J")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::{InMemoryTerm, TermLike};

    use super::*;

    impl Surface for InMemoryTerm {
        fn size(&self) -> (usize, usize) {
            (self.height().into(), self.width().into())
        }
        fn write(&mut self, text: &str) {
            self.write_str(text).unwrap();
            TermLike::flush(self).unwrap();
        }
    }

    /// A terminal of any width that keeps what it is sent.
    #[derive(Clone)]
    struct Kept(Arc<Mutex<(usize, Vec<String>)>>, bool);

    impl Surface for Kept {
        fn size(&self) -> (usize, usize) {
            (10, self.0.lock().unwrap().0)
        }
        fn reflows(&self) -> bool {
            self.1
        }
        fn write(&mut self, text: &str) {
            self.0.lock().unwrap().1.push(text.to_owned());
        }
    }

    fn lines(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn lines_that_stay_go_above_the_block() {
        let term = InMemoryTerm::new(6, 20);
        let mut screen = Screen::new(Box::new(term.clone()));
        screen.draw(None, &lines(&["one", "two"]));
        screen.draw(Some("first\nsecond"), &lines(&["three", "four", "five"]));
        assert_eq!(term.contents(), "first\nsecond\nthree\nfour\nfive");
        screen.draw(Some("last"), &lines(&["six"]));
        assert_eq!(term.contents(), "first\nsecond\nlast\nsix");
        screen.draw(None, &[]);
        screen.draw(Some("end"), &[]);
        assert_eq!(term.contents(), "first\nsecond\nlast\nend");
    }

    #[test]
    fn a_block_at_the_bottom_scrolls_what_stays() {
        let term = InMemoryTerm::new(3, 20);
        let mut screen = Screen::new(Box::new(term.clone()));
        for i in 0..5 {
            screen.draw(Some(&format!("line {i}")), &lines(&["a", "b"]));
        }
        assert_eq!(term.contents(), "line 4\na\nb");
    }

    #[test]
    fn lines_are_cut_to_the_width_by_columns_not_by_codes() {
        let term = InMemoryTerm::new(4, 8);
        let mut screen = Screen::new(Box::new(term.clone()));
        screen.draw(None, &lines(&["\x1b[32m0123456789\x1b[0m", "語語語語語", "short"]));
        assert_eq!(term.contents(), "012345…\n語語語…\nshort");
    }

    #[test]
    fn a_narrower_window_is_erased_as_far_as_it_broke_the_lines() {
        for (reflows, up) in [(true, "\r\x1b[4A\x1b[J"), (false, "\r\x1b[1A\x1b[J")] {
            let kept = Kept(Arc::new(Mutex::new((40, vec![]))), reflows);
            let mut screen = Screen::new(Box::new(kept.clone()));
            screen.draw(None, &[String::from("x").repeat(25), String::from("y").repeat(11)]);
            kept.0.lock().unwrap().0 = 10;
            screen.draw(None, &lines(&["z"]));
            let sent = kept.0.lock().unwrap().1.clone();
            assert_eq!(sent[1], format!("{up}z"), "{reflows}");
        }
    }

    #[test]
    fn nothing_to_show_is_nothing_sent() {
        let kept = Kept(Arc::new(Mutex::new((0, vec![]))), true);
        let mut screen = Screen::new(Box::new(kept.clone()));
        screen.draw(None, &[]);
        assert_eq!((screen.size(), kept.0.lock().unwrap().1.len()), ((24, 80), 0));
    }
}
