//! The texts that make up a manifest: its file, the files it extends, and the words of the command line. Knows no TOML
//! beyond `extends`.
//!
//! All texts share one address space, so that a plain range of bytes says which text it lies in. Tables merged from
//! several files keep exact places that way.

use std::{
    io,
    ops::Range,
    path::{Component, Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::error::{Fault, Mistake};

/// A range of bytes in the address space of [`Sources`].
pub type Span = Range<usize>;

/// What the command line adds to a manifest.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--profile NAME`.
    pub profile: Option<String>,
    /// `--set K=V`, in the order given.
    pub set: Vec<String>,
}

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file's path as the user would write it, or `--set`, `--profile`.
    pub name: String,
    /// The text.
    pub text: String,
    /// Where the text begins in the shared address space.
    pub start: usize,
}

/// The texts of one manifest.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    all: Vec<Source>,
    files: usize,
    profile: Option<usize>,
}

impl Sources {
    /// Reads the manifest and the chain of files that it extends. With faults the sources are still good for showing
    /// them.
    pub fn read(path: &Path, options: &Options) -> (Self, Vec<Fault>) {
        Self::read_with(path, options, &|path| std::fs::read_to_string(path))
    }

    /// [`Sources::read`] with another file system.
    pub fn read_with(
        path: &Path,
        options: &Options,
        open: &dyn Fn(&Path) -> io::Result<String>,
    ) -> (Self, Vec<Fault>) {
        let mut sources = Self::default();
        let mut faults = Vec::new();
        if let Err(fault) = sources.read_chain(path, open) {
            faults.push(*fault);
        }
        sources.files = sources.all.len();
        if let Some(profile) = &options.profile {
            sources.profile = Some(sources.all.len());
            sources.push("--profile".to_owned(), profile.clone());
        }
        for set in &options.set {
            sources.push("--set".to_owned(), set.clone());
        }
        (sources, faults)
    }

    /// The manifest and then the files it extends, nearest first.
    pub fn files(&self) -> &[Source] {
        &self.all[..self.files]
    }

    /// The text of `--profile`.
    pub fn profile(&self) -> Option<&Source> {
        self.profile.map(|i| &self.all[i])
    }

    /// The texts of `--set`, in order.
    pub fn sets(&self) -> &[Source] {
        &self.all[self.profile.map_or(self.files, |i| i + 1)..]
    }

    /// The text that a span lies in, and the span inside it.
    pub fn locate(&self, span: &Span) -> Option<(&Source, Span)> {
        let source = self.all.iter().rfind(|source| source.start <= span.start)?;
        let clamp = |at: usize| (at - source.start).min(source.text.len());
        Some((source, clamp(span.start)..clamp(span.end.max(span.start))))
    }

    /// The folder of the file that a span lies in; for words of the command line that of the manifest.
    pub fn folder(&self, span: &Span) -> PathBuf {
        let holds = |file: &&Source| (file.start..=file.start + file.text.len()).contains(&span.start);
        let file = self.files().iter().find(holds).or(self.files().first());
        file.and_then(|file| Path::new(&file.name).parent()).map(Path::to_owned).unwrap_or_default()
    }

    /// The characters of a span, as written.
    pub fn text(&self, span: &Span) -> &str {
        self.locate(span).and_then(|(source, local)| source.text.get(local)).unwrap_or_default()
    }

    fn push(&mut self, name: String, text: String) -> &Source {
        // The one byte between two texts keeps a span at the end of one out of the next.
        let start = self.all.last().map_or(0, |last| last.start + last.text.len() + 1);
        self.all.push(Source { name, text, start });
        self.all.last().expect("one was just pushed")
    }

    fn read_chain(
        &mut self,
        path: &Path,
        open: &dyn Fn(&Path) -> io::Result<String>,
    ) -> Result<(), Box<Fault>> {
        let mut chain: Vec<PathBuf> = Vec::new();
        let mut next = (tidy(path), None);
        loop {
            let (path, place) = next;
            let again = chain.contains(&path);
            let name = path.display().to_string();
            chain.push(path);
            if again {
                let names: Vec<_> = chain.iter().map(|p| p.display().to_string()).collect();
                let fault = Fault::new(Mistake::ExtendsCycle(names.join(" → ")));
                return Err(Box::new(fault.at_maybe(place).hint("remove one of these `extends`")));
            }
            let path = chain.last().expect("one was just pushed");
            let text = open(path).map_err(|source| unreadable(name.clone(), source, place))?;
            let source = self.push(name, text);
            let Some((extends, span)) = extends(source) else { return Ok(()) };
            let folder = path.parent().unwrap_or(Path::new(""));
            next = (tidy(&folder.join(extends)), Some(span));
        }
    }
}

fn unreadable(name: String, source: io::Error, place: Option<Span>) -> Box<Fault> {
    let hint = match (&place, source.kind()) {
        (Some(_), io::ErrorKind::NotFound) => "`extends` is relative to the file that writes it",
        (None, io::ErrorKind::NotFound) => "check the path; `mla-run FILE.toml` runs a manifest",
        _ => "a manifest is a UTF-8 text file that you may read",
    };
    Box::new(Fault::new(Mistake::Unreadable { path: name, source }).at_maybe(place).hint(hint))
}

/// The value of `extends` and its place. A wrong type is reported later, with everything else.
fn extends(source: &Source) -> Option<(String, Span)> {
    if !source.text.contains("extends") {
        return None; // most files: one parse less
    }
    let (root, _) = DeTable::parse_recoverable(&source.text);
    let pipeline = root.get_ref().get("pipeline")?.get_ref();
    let value = pipeline.get("extends")?;
    let DeValue::String(path) = value.get_ref() else { return None };
    let span = value.span();
    Some((path.clone().into_owned(), span.start + source.start..span.end + source.start))
}

/// Removes `.` and resolves `..` by name, so that two spellings of one file meet.
fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match (part, out.components().next_back()) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                out.pop();
            }
            (part, _) => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(files: &'static [(&str, &str)]) -> impl Fn(&Path) -> io::Result<String> {
        move |path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    #[test]
    fn the_chain_is_read_nearest_first_and_spans_name_their_text() {
        let open = disk(&[
            ("p/a.toml", "[pipeline]\nextends = '../b.toml'"),
            ("b.toml", "[pipeline]\nextends = \"q/c.toml\""),
            ("q/c.toml", "[vars]\nx = 1"),
        ]);
        let options = Options { profile: Some("quick".into()), set: vec!["a=1".into(), "b=2".into()] };
        let (sources, faults) = Sources::read_with(Path::new("p/./a.toml"), &options, &open);
        assert!(faults.is_empty(), "{faults:?}");
        let names: Vec<_> = sources.files().iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["p/a.toml", "b.toml", "q/c.toml"]);
        let start = sources.files()[2].start + 7;
        assert_eq!(sources.text(&(start..start + 5)), "x = 1");
        assert_eq!(sources.profile().unwrap().text, "quick");
        let sets: Vec<_> = sources.sets().iter().map(|s| s.text.as_str()).collect();
        assert_eq!(sets, ["a=1", "b=2"]);
    }

    #[test]
    fn a_span_at_the_end_of_a_text_stays_in_it() {
        let mut sources = Sources::default();
        sources.push("a".into(), "12".into());
        sources.push("b".into(), "34".into());
        assert_eq!(sources.locate(&(2..2)).unwrap().0.name, "a");
        assert_eq!(sources.locate(&(3..4)).unwrap().0.name, "b");
        assert_eq!(sources.locate(&(3..900)).unwrap().1, 0..2);
    }

    #[test]
    fn a_cycle_of_extends_is_named_where_it_closes() {
        let open = disk(&[
            ("a.toml", "[pipeline]\nextends = 'b.toml'"),
            ("b.toml", "[pipeline]\nextends = './a.toml'"),
        ]);
        let (sources, faults) = Sources::read_with(Path::new("a.toml"), &Options::default(), &open);
        assert_eq!(faults[0].error.to_string(), "`extends` goes in a circle: a.toml → b.toml → a.toml");
        let (source, span) = sources.locate(faults[0].place.as_ref().unwrap()).unwrap();
        assert_eq!((source.name.as_str(), &source.text[span]), ("b.toml", "'./a.toml'"));
    }

    #[test]
    fn two_spellings_of_one_file_meet() {
        for (path, expected) in [
            ("a.toml", "a.toml"),
            ("./a/./b.toml", "a/b.toml"),
            ("a/../b.toml", "b.toml"),
            ("a/b/../../c.toml", "c.toml"),
            ("../a.toml", "../a.toml"),
            ("a/../../b.toml", "../b.toml"),
            ("../../a/../b", "../../b"),
            ("/a/../b.toml", "/b.toml"),
            ("/../a", "/../a"),
        ] {
            assert_eq!(tidy(Path::new(path)), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn a_file_may_be_extended_from_several_folders_and_by_its_absolute_path() {
        let open = disk(&[
            ("p/a.toml", "[pipeline]\nextends = '/lib/b.toml'"),
            ("/lib/b.toml", "[pipeline]\nextends = './sub/../c.toml'"),
            ("/lib/c.toml", "[vars]"),
        ]);
        let (sources, faults) = Sources::read_with(Path::new("p/a.toml"), &Options::default(), &open);
        assert!(faults.is_empty(), "{faults:?}");
        let names: Vec<_> = sources.files().iter().map(|source| source.name.as_str()).collect();
        assert_eq!(names, ["p/a.toml", "/lib/b.toml", "/lib/c.toml"]);
    }

    #[test]
    fn only_a_text_that_is_a_path_is_followed() {
        for text in [
            "# [pipeline] extends = 'gone.toml'",
            "[vars]\nextends = 'gone.toml'",
            "extends = 'gone.toml'",
            "[pipeline]\nextends = 3",
            "[pipeline]\nextends = ['gone.toml']",
            "pipeline = 'extends'",
        ] {
            let open = |_: &Path| Ok(text.to_owned());
            let (sources, faults) = Sources::read_with(Path::new("a.toml"), &Options::default(), &open);
            assert_eq!((sources.files().len(), faults.len()), (1, 0), "{text}");
        }
        // A file with mistakes still names what it extends, so that the mistakes of both are told.
        let open = disk(&[("a.toml", "x = oops\n[pipeline]\nextends = 'b.toml'"), ("b.toml", "")]);
        let (sources, _) = Sources::read_with(Path::new("a.toml"), &Options::default(), &open);
        assert_eq!(sources.files().len(), 2);
    }

    #[test]
    fn a_file_that_extends_itself_is_a_circle_of_one() {
        let open = disk(&[("d/a.toml", "[pipeline]\nextends = 'a.toml'")]);
        let (_, faults) = Sources::read_with(Path::new("d/a.toml"), &Options::default(), &open);
        assert_eq!(faults[0].error.to_string(), "`extends` goes in a circle: d/a.toml → d/a.toml");
        assert_eq!(faults[0].hint.as_deref(), Some("remove one of these `extends`"));
    }

    #[test]
    fn why_a_file_cannot_be_read_decides_the_hint() {
        let hint = |kind: io::ErrorKind, path: &'static str| {
            let open = move |asked: &Path| match asked.to_str() {
                Some("a.toml") if path != "a.toml" => Ok("[pipeline]\nextends = 'b.toml'".to_owned()),
                _ => Err(kind.into()),
            };
            let (_, faults) = Sources::read_with(Path::new("a.toml"), &Options::default(), &open);
            faults[0].hint.clone().unwrap()
        };
        let text = "a manifest is a UTF-8 text file that you may read";
        for (kind, path, expected) in [
            (io::ErrorKind::NotFound, "a.toml", "check the path; `mla-run FILE.toml` runs a manifest"),
            (io::ErrorKind::NotFound, "b.toml", "`extends` is relative to the file that writes it"),
            (io::ErrorKind::PermissionDenied, "a.toml", text),
            (io::ErrorKind::InvalidData, "b.toml", text),
        ] {
            assert_eq!(hint(kind, path), expected, "{kind} {path}");
        }
    }

    #[test]
    fn a_missing_file_is_a_fault_with_the_place_that_asks_for_it() {
        let open = disk(&[("a.toml", "[pipeline]\nextends = 'gone.toml'")]);
        let (sources, faults) = Sources::read_with(Path::new("a.toml"), &Options::default(), &open);
        assert_eq!(sources.text(faults[0].place.as_ref().unwrap()), "'gone.toml'");
        let (_, faults) = Sources::read_with(Path::new("none.toml"), &Options::default(), &open);
        assert!(faults[0].place.is_none());
    }
}
