//! Texts: documents with their source and licence, in the order of their ids. Knows no corpus format.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Artifact, ArtifactError, Files, file};

/// One document. Its id is the BLAKE3 of the text (UTF-8, NFC, LF).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// BLAKE3 of `text`, 64 hex digits.
    pub id: String,
    /// Where it came from: `synthetic/prose`, `sources.0/guide/intro.md`.
    pub source: String,
    /// Licence name as the user wrote it; empty when none was given.
    pub licence: String,
    /// The normalised text.
    pub text: String,
    /// Whether the names of special tokens in the text are those tokens, as in a conversation that the corpus rendered. In any other
    /// text such a name is text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub special_tokens: bool,
    /// Answers whose facts lie far back; only the synthetic corpus knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
}

/// An answer that can only be given by recalling something stated earlier. Offsets are bytes of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// First byte of the answer.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
    /// First byte of the place where the answer was last stated.
    pub stated: usize,
    /// How many answers were possible, so that chance is 1 / choices.
    pub choices: u32,
}

/// The documents of a corpus, sorted by id, each id once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts(pub Vec<Text>);

const FILE: &str = "texts.jsonl";

/// The group that a document's source belongs to, for counts and quotas: the source's first part (`sources.0`), and for
/// generated text the domain too (`synthetic/prose`).
pub fn group(source: &str) -> &str {
    if source.starts_with("synthetic/") { source } else { source.split('/').next().unwrap_or(source) }
}

impl Artifact for Texts {
    const KIND: &'static str = "texts";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        write_jsonl(&dir.join(FILE), &self.0)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        read_jsonl(Self::KIND, files, FILE).map(Self)
    }
}

/// Writes texts one after the other, for a corpus that does not fit into memory.
pub struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Writer {
    /// Starts the file of [`Texts`] in an existing, empty folder.
    pub fn create(dir: &Path) -> Result<Self, ArtifactError> {
        let path = dir.join(FILE);
        let out = BufWriter::new(File::create(&path).map_err(ArtifactError::io(&path))?);
        Ok(Self { path, out })
    }

    /// Adds one text, as [`line()`] gives it. Texts come sorted by id, each id once.
    pub fn push(&mut self, line: &[u8]) -> Result<(), ArtifactError> {
        self.out.write_all(line).map_err(ArtifactError::io(&self.path))
    }

    /// Writes what is still in memory.
    pub fn finish(mut self) -> Result<(), ArtifactError> {
        self.out.flush().map_err(ArtifactError::io(&self.path))
    }
}

/// The line of a text in the file of [`Texts`], with its line feed.
pub fn line(text: &Text) -> Vec<u8> {
    let mut line = serde_json::to_vec(text).expect("strings and numbers are JSON");
    line.push(b'\n');
    line
}

/// Writes one JSON object a line.
pub fn write_jsonl<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), ArtifactError> {
    let mut out = BufWriter::new(File::create(path).map_err(ArtifactError::io(path))?);
    for row in rows {
        serde_json::to_writer(&mut out, row).map_err(|e| ArtifactError::io(path)(e.into()))?;
        out.write_all(b"\n").map_err(ArtifactError::io(path))?;
    }
    out.flush().map_err(ArtifactError::io(path))
}

/// Reads one JSON object a line; an error names the line.
pub fn read_jsonl<T: for<'de> Deserialize<'de>>(
    kind: &'static str,
    files: &Files,
    name: &str,
) -> Result<Vec<T>, ArtifactError> {
    let path = file(kind, files, name)?;
    let lines = BufReader::new(File::open(path).map_err(ArtifactError::io(path))?).lines();
    let row = |(i, line): (usize, std::io::Result<String>)| {
        let line = line.map_err(ArtifactError::io(path))?;
        serde_json::from_str(&line).map_err(|e| ArtifactError::Malformed {
            kind,
            file: name.to_owned(),
            place: format!("line {}", i + 1),
            why: e.to_string(),
        })
    };
    lines.enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_sources_and_synthetic_domains() {
        for (source, expected) in
            [("sources.0/a/b.md", "sources.0"), ("code", "code"), ("synthetic/prose", "synthetic/prose")]
        {
            assert_eq!(group(source), expected);
        }
    }

    #[test]
    fn round_trip_and_line_numbers_in_errors() {
        let dir = tempfile::tempdir().unwrap();
        let row = Text {
            id: "00".into(),
            source: "a".into(),
            licence: "MIT".into(),
            text: "line\nbreak".into(),
            special_tokens: false,
            marks: vec![Mark { start: 5, end: 10, stated: 0, choices: 8 }],
        };
        let chat = Text { special_tokens: true, ..row.clone() };
        let texts = Texts(vec![row.clone(), chat, Text { marks: vec![], ..row }]);
        texts.save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let saved = std::fs::read(&path).unwrap();
        let mut writer = Writer::create(dir.path()).unwrap();
        texts.0.iter().for_each(|text| writer.push(&line(text)).unwrap());
        writer.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), saved, "one by one as all at once");
        let flags = String::from_utf8(saved).unwrap();
        let flags: Vec<bool> =
            flags.lines().map(|line| line.contains(r#","special_tokens":true,"#)).collect();
        assert_eq!(
            flags,
            [false, true, false],
            "a text without the flag has the bytes that it had before there was one"
        );
        assert!(!String::from_utf8(line(&texts.0[0])).unwrap().contains("special"));
        let files = Files::from([(FILE.to_owned(), path.clone())]);
        assert_eq!(Texts::load(&files).unwrap(), texts);

        let broken = std::fs::read_to_string(&path).unwrap() + "{\"id\":3}\n";
        std::fs::write(&path, broken).unwrap();
        let error = Texts::load(&files).unwrap_err().to_string();
        assert!(error.starts_with("artifact `texts`, file `texts.jsonl`, line 4: "), "{error}");
    }
}
