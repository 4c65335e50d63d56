//! Documents on their way from a file to judgement, in batches whose size does not depend on the file. Knows no rule.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
};

use minijinja::{Value, value::ValueKind};

use super::{
    CorpusError,
    chat::{self, Chat, Fault},
    columns, jsonl, nested, normalise,
};
use crate::artifact::texts::Text;

/// The fields of a row that matter, by their names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) text: &'a str,
    pub(super) licence: Option<&'a str>,
    pub(super) source: Option<&'a str>,
    /// Where rows hold conversations: how they become texts. `text` says nothing then.
    pub(super) chat: Option<&'a Chat>,
}

/// One document in canonical form; the text is `None` where `fault` says why there is none, or else where it is not UTF-8.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) text: Option<String>,
    pub(super) licence: Option<String>,
    pub(super) source: Option<String>,
    /// For a conversation: what was said in it, which is what rules look at.
    pub(super) said: Option<String>,
    pub(super) fault: Option<&'static str>,
}

/// One document as its file gave it: parsing waits for the threads that judge.
#[derive(Clone)]
pub(super) enum Raw {
    File(PathBuf),
    Line {
        path: Arc<Path>,
        number: usize,
        bytes: Vec<u8>,
    },
    Cells(columns::Cells),
    /// A row with lists and structs; without a value where it is not UTF-8.
    Record {
        path: Arc<Path>,
        number: usize,
        value: Option<Value>,
    },
    Made(Text),
}

impl Raw {
    /// The document in canonical form. Generated ones are canonical already.
    pub(super) fn parse(self, fields: Fields<'_>) -> Result<Row, CorpusError> {
        match self {
            Self::File(path) => {
                let bytes = std::fs::read(&path).map_err(CorpusError::io(&path))?;
                Ok(Row { text: normalise::canonical(bytes), ..Row::default() })
            }
            Self::Line { path, number, bytes } => jsonl::row(bytes, fields)
                .map_err(|why| CorpusError::BadLine { path: path.display().to_string(), line: number, why }),
            Self::Cells(cells) => Ok(cells.row()),
            Self::Record { path, number, value } => {
                let (Some(value), Some(chat)) = (value, fields.chat) else { return Ok(Row::default()) };
                conversation(&value, chat, fields).map_err(|why| CorpusError::BadRow {
                    path: path.display().to_string(),
                    row: number,
                    why,
                })
            }
            Self::Made(text) => Ok(Row { text: Some(text.text), ..Row::default() }),
        }
    }
}

/// The document of a row that holds a conversation; a fault is a fragment.
pub(super) fn conversation(row: &Value, chat: &Chat, fields: Fields<'_>) -> Result<Row, String> {
    if row.kind() != ValueKind::Map {
        return Err("expected a JSON object".to_owned());
    }
    let name = |field: Option<&str>| {
        let Some(field) = field else { return Ok(None) };
        let value = row.get_attr(field).unwrap_or_default();
        match value.as_str() {
            Some(name) => Ok(Some(name.to_owned())),
            None if value.is_undefined() => Err(chat::missing(row, field)),
            None if value.is_none() => Ok(None),
            None => Err(format!("the field `{field}` is neither a string nor `null`")),
        }
    };
    let (licence, source) = (name(fields.licence)?, name(fields.source)?);
    let names = Row { licence, source, ..Row::default() };
    match chat.render(row) {
        Ok(found) => Ok(Row { text: Some(found.text), said: Some(found.said), ..names }),
        Err(Fault::Unfit(reason)) => Ok(Row { fault: Some(reason), ..names }),
        Err(Fault::Malformed(why)) => Err(why),
    }
}

/// Takes a full batch: documents with the name of the file that each comes from.
pub(super) type Sink<'a, E> = dyn FnMut(Vec<(Arc<str>, Raw)>) -> Result<(), E> + 'a;

/// The most documents of a batch: short ones weigh more than their bytes.
const MOST: usize = 1 << 16;

/// Documents that wait, handed on once they hold `limit` bytes or are [`MOST`].
pub(super) struct Batch<'a, E> {
    limit: u64,
    held: u64,
    waiting: Vec<(Arc<str>, Raw)>,
    sink: &'a mut Sink<'a, E>,
}

impl<'a, E: From<CorpusError>> Batch<'a, E> {
    pub(super) fn new(limit: u64, sink: &'a mut Sink<'a, E>) -> Self {
        Self { limit, held: 0, waiting: Vec::new(), sink }
    }

    /// Adds one document of `bytes` bytes.
    pub(super) fn push(&mut self, name: &Arc<str>, raw: Raw, bytes: u64) -> Result<(), E> {
        self.waiting.push((name.clone(), raw));
        self.held += bytes;
        if self.held >= self.limit || self.waiting.len() >= MOST { self.flush() } else { Ok(()) }
    }

    /// Hands on what waits.
    pub(super) fn flush(&mut self) -> Result<(), E> {
        self.held = 0;
        if self.waiting.is_empty() { Ok(()) } else { (self.sink)(std::mem::take(&mut self.waiting)) }
    }

    /// A text file is one document.
    pub(super) fn file(&mut self, name: &Arc<str>, path: &Path) -> Result<(), E> {
        let bytes = std::fs::metadata(path).map_err(CorpusError::io(path))?.len();
        self.push(name, Raw::File(path.to_owned()), bytes)
    }

    /// Every line of a JSONL file that is not empty is one.
    pub(super) fn lines(&mut self, name: &Arc<str>, path: &Path) -> Result<(), E> {
        let mut file = BufReader::new(File::open(path).map_err(CorpusError::io(path))?);
        let shared: Arc<Path> = path.into();
        for number in 1.. {
            let mut bytes = Vec::new();
            if file.read_until(b'\n', &mut bytes).map_err(CorpusError::io(path))? == 0 {
                break;
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                let weight = bytes.len() as u64;
                self.push(name, Raw::Line { path: shared.clone(), number, bytes }, weight)?;
            }
        }
        Ok(())
    }

    /// Every row of a Parquet file is one.
    pub(super) fn table(&mut self, name: &Arc<str>, path: &Path, fields: Fields<'_>) -> Result<(), E> {
        if let Some(chat) = fields.chat {
            return self.records(name, path, chat, fields);
        }
        columns::read(path, fields, &mut |cells| {
            let bytes = cells.bytes();
            self.push(name, Raw::Cells(cells), bytes)
        })
    }

    fn records(&mut self, name: &Arc<str>, path: &Path, chat: &Chat, fields: Fields<'_>) -> Result<(), E> {
        let names = [fields.licence, fields.source].into_iter().flatten().map(|name| (name, true));
        let wanted: Vec<_> = [(chat.messages(), true), chat.tools()].into_iter().chain(names).collect();
        let shared: Arc<Path> = path.into();
        nested::read(path, &wanted, &mut |nested::Record { number, value, bytes }| {
            self.push(name, Raw::Record { path: shared.clone(), number, value }, bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line numbers of each batch.
    fn batches(text: &str, limit: u64) -> Vec<Vec<usize>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        std::fs::write(&path, text).unwrap();
        let mut found = Vec::new();
        let mut sink = |batch: Vec<(Arc<str>, Raw)>| {
            let number = |(_, raw): &(Arc<str>, Raw)| match raw {
                Raw::Line { number, .. } => *number,
                _ => panic!("a line is a line"),
            };
            found.push(batch.iter().map(number).collect());
            Ok::<(), CorpusError>(())
        };
        let mut batch = Batch::new(limit, &mut sink);
        batch.lines(&"r".into(), &path).unwrap();
        batch.flush().unwrap();
        batch.flush().unwrap();
        found
    }

    #[test]
    fn a_batch_is_full_at_its_limit_and_lines_keep_their_numbers() {
        let text = "{}\n\n{ }\n \r\n{}\n{}";
        assert_eq!(batches(text, 1), [vec![1], vec![3], vec![5], vec![6]]);
        assert_eq!(batches(text, 4), [vec![1, 3], vec![5, 6]]);
        assert_eq!(batches(text, 1 << 20), [vec![1, 3, 5, 6]]);
        assert!(batches("\n\n", 1).is_empty());
        assert!(batches("", 1).is_empty());
        let sizes: Vec<_> = batches(&"1\n".repeat(MOST + 3), u64::MAX).iter().map(Vec::len).collect();
        assert_eq!(sizes, [MOST, 3]);
    }

    #[test]
    fn a_file_that_went_away_is_named() {
        let mut sink = |_| Ok::<(), CorpusError>(());
        let mut batch = Batch::new(1, &mut sink);
        let name = "gone".into();
        for error in [batch.file(&name, Path::new("gone/a")), batch.lines(&name, Path::new("gone/a"))] {
            assert!(error.unwrap_err().to_string().starts_with("gone/a: "));
        }
        let fields = Fields { text: "text", licence: None, source: None, chat: None };
        let raw = Raw::File("gone/a".into()).parse(fields);
        assert!(raw.unwrap_err().to_string().starts_with("gone/a: "));
    }
}
