//! Documents in a Parquet file: one a row, each field a column of strings. Knows no other format.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use parquet::{
    basic::{Compression, ConvertedType, Type},
    column::reader::{ColumnReaderImpl, get_typed_column_reader},
    data_type::{ByteArray, ByteArrayType},
    errors::ParquetError,
    file::reader::{FileReader, RowGroupReader, SerializedFileReader},
    schema::types::SchemaDescriptor,
};

use super::{
    CorpusError, normalise,
    rows::{Fields, Row},
};

/// Rows that are decoded at once: few, because each may be long.
pub(super) const ROWS: usize = 64;

/// One row; `None` is a null.
#[derive(Debug, Clone, Default)]
pub(super) struct Cells {
    text: Option<Vec<u8>>,
    licence: Option<Vec<u8>>,
    source: Option<Vec<u8>>,
}

impl Cells {
    pub(super) fn bytes(&self) -> u64 {
        [&self.text, &self.licence, &self.source].into_iter().flatten().map(|cell| cell.len() as u64).sum()
    }

    /// A null text is an empty one. A name that is not UTF-8 makes the row as bad as such a text does.
    pub(super) fn row(self) -> Row {
        let name = |cell: Option<Vec<u8>>| cell.map(String::from_utf8).transpose();
        match (name(self.licence), name(self.source)) {
            (Ok(licence), Ok(source)) => {
                let text = normalise::canonical(self.text.unwrap_or_default());
                Row { text, licence, source, ..Row::default() }
            }
            _ => Row::default(),
        }
    }
}

/// Hands on every row of the file.
pub(super) fn read<E: From<CorpusError>>(
    path: &Path,
    fields: Fields<'_>,
    each: &mut dyn FnMut(Cells) -> Result<(), E>,
) -> Result<(), E> {
    let file = File::open(path).map_err(CorpusError::io(path))?;
    let bad =
        |why: ParquetError| CorpusError::BadTable { path: path.display().to_string(), why: plain(&why) };
    let reader = guard(|| SerializedFileReader::new(file)).map_err(bad)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let column = |name| {
        column(schema, name).map_err(|why| CorpusError::BadColumn { path: path.display().to_string(), why })
    };
    let text = column(fields.text)?;
    let licence = fields.licence.map(column).transpose()?;
    let source = fields.source.map(column).transpose()?;
    for i in 0..reader.num_row_groups() {
        let group = guard(|| reader.get_row_group(i)).map_err(bad)?;
        for i in [Some(text), licence, source].into_iter().flatten() {
            readable(group.metadata().column(i).compression())
                .map_err(|why| CorpusError::BadColumn { path: path.display().to_string(), why })?;
        }
        let mut left = group.metadata().num_rows() as usize;
        let open = |i: usize| guard(|| Column::open(&*group, i)).map_err(bad);
        let mut text = open(text)?;
        let mut licence = licence.map(open).transpose()?;
        let mut source = source.map(open).transpose()?;
        while left > 0 {
            let n = left.min(ROWS);
            left -= n;
            let texts = guard(|| text.next(n)).map_err(bad)?;
            let more = |column: &mut Option<Column>| match column {
                Some(column) => guard(|| column.next(n)).map_err(bad),
                None => Ok(vec![None; n]),
            };
            let (licences, sources) = (more(&mut licence)?, more(&mut source)?);
            for ((text, licence), source) in texts.into_iter().zip(licences).zip(sources) {
                each(Cells { text, licence, source })?;
            }
        }
    }
    Ok(())
}

/// The place of a column of strings. Columns inside a struct are named with dots.
fn column(schema: &SchemaDescriptor, name: &str) -> Result<usize, String> {
    let Some(i) = schema.columns().iter().position(|column| column.path().string() == name) else {
        let all: Vec<_> = schema.columns().iter().map(|c| format!("`{}`", c.path().string())).collect();
        return Err(format!("there is no column `{name}`; the file has {}", all.join(", ")));
    };
    let column = schema.column(i);
    let text = [ConvertedType::UTF8, ConvertedType::JSON, ConvertedType::ENUM, ConvertedType::NONE];
    let strings = column.physical_type() == Type::BYTE_ARRAY && text.contains(&column.converted_type());
    if strings && column.max_rep_level() == 0 {
        Ok(i)
    } else {
        Err(format!("the column `{name}` is not one of strings"))
    }
}

/// The compressions that this program is built with.
pub(super) fn readable(codec: Compression) -> Result<(), String> {
    match codec {
        Compression::LZO => {
            Err("is compressed with LZO, which is not supported; write it with ZSTD or SNAPPY".to_owned())
        }
        _ => Ok(()),
    }
}

/// The crate panics on some kinds of damage and refuses others; for the user they are one.
pub(super) fn guard<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(ParquetError::General("its parts do not fit together".to_owned())))
}

/// One column of a row group, read from its start.
struct Column {
    reader: ColumnReaderImpl<ByteArrayType>,
    /// The definition level of a value that is there.
    full: i16,
}

impl Column {
    fn open(group: &dyn RowGroupReader, i: usize) -> Result<Self, ParquetError> {
        let full = group.metadata().schema_descr().column(i).max_def_level();
        Ok(Self { reader: get_typed_column_reader(group.get_column_reader(i)?), full })
    }

    /// The next `n` values.
    fn next(&mut self, n: usize) -> Result<Vec<Option<Vec<u8>>>, ParquetError> {
        let (mut levels, mut values) = (Vec::new(), Vec::<ByteArray>::new());
        let (found, _, _) = self.reader.read_records(n, Some(&mut levels), None, &mut values)?;
        if found != n {
            return Err(ParquetError::General("a column ends before the others".to_owned()));
        }
        // A required column has no levels.
        levels.resize(n, self.full);
        let mut values = values.into_iter().map(|value| value.data().to_vec());
        Ok(levels.into_iter().map(|level| if level == self.full { values.next() } else { None }).collect())
    }
}

/// The reader's error without its own prefix.
pub(super) fn plain(error: &ParquetError) -> String {
    let text = error.to_string();
    text.split_once(": ").map_or(text.as_str(), |(_, rest)| rest).to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use parquet::{
        basic::{BrotliLevel, GzipLevel, ZstdLevel},
        data_type::Int64Type,
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };
    use proptest::{
        prelude::{ProptestConfig, any},
        prop_assert, proptest,
        sample::Index,
    };

    use super::*;

    /// Writes optional columns of strings, with `group` rows in a group.
    pub(in super::super) fn write(path: &Path, columns: &[(&str, &[Option<&str>])], group: usize) {
        write_as(Compression::SNAPPY, path, columns, group);
    }

    fn write_as(codec: Compression, path: &Path, columns: &[(&str, &[Option<&str>])], group: usize) {
        let fields: Vec<_> =
            columns.iter().map(|(name, _)| format!("optional binary {name} (UTF8);")).collect();
        let schema = Arc::new(parse_message_type(&format!("message m {{ {} }}", fields.join(" "))).unwrap());
        let properties = WriterProperties::builder().set_compression(codec).build();
        let mut file =
            SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
        for start in (0..columns[0].1.len()).step_by(group) {
            let mut rows = file.next_row_group().unwrap();
            for (_, values) in columns {
                let values = &values[start..(start + group).min(values.len())];
                let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
                let full: Vec<ByteArray> = values.iter().flatten().map(|&v| ByteArray::from(v)).collect();
                let mut column = rows.next_column().unwrap().unwrap();
                column.typed::<ByteArrayType>().write_batch(&full, Some(&levels), None).unwrap();
                column.close().unwrap();
            }
            rows.close().unwrap();
        }
        file.close().unwrap();
    }

    /// A file with a number, a list, and strings inside a struct.
    fn write_odd(path: &Path) {
        let schema = "message m { required int64 n; repeated binary list (UTF8);
            optional group meta { optional binary licence (UTF8); } required binary raw; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut file =
            SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
        let mut rows = file.next_row_group().unwrap();
        let mut number = rows.next_column().unwrap().unwrap();
        number.typed::<Int64Type>().write_batch(&[1, 2, 3], None, None).unwrap();
        number.close().unwrap();
        let text = |words: &[&[u8]]| words.iter().map(|w| ByteArray::from(w.to_vec())).collect::<Vec<_>>();
        for (values, definition, repetition) in [
            (text(&[b"a", b"b"]), Some(&[1, 1, 0][..]), Some(&[0, 0, 0][..])),
            (text(&[b"MIT"]), Some(&[0, 1, 2]), None),
            (text(&[b"one", b"caf\xe9", b"three"]), None, None),
        ] {
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, definition, repetition).unwrap();
            column.close().unwrap();
        }
        rows.close().unwrap();
        file.close().unwrap();
    }

    fn rows(path: &Path, fields: Fields<'_>) -> Result<Vec<Row>, String> {
        let mut rows = Vec::new();
        let mut each = |cells: Cells| {
            rows.push(cells.row());
            Ok::<(), CorpusError>(())
        };
        read(path, fields, &mut each).map_err(|e| e.to_string())?;
        Ok(rows)
    }

    const TEXT: Fields<'_> = Fields { text: "text", licence: None, source: None, chat: None };

    #[test]
    fn rows_come_back_from_every_group_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        let texts: Vec<String> = (0..300).map(|i| format!("text {i}\r\n")).collect();
        let text: Vec<_> = texts.iter().map(|text| Some(text.as_str())).collect();
        let licence: Vec<_> = (0..300).map(|i| (i % 3 > 0).then_some("MIT")).collect();
        for group in [1, 7, 64, 65, 300] {
            write(&path, &[("licence", &licence), ("text", &text)], group);
            let found = rows(&path, Fields { licence: Some("licence"), ..TEXT }).unwrap();
            assert_eq!(found.len(), 300);
            for (i, row) in found.iter().enumerate() {
                assert_eq!(row.text, Some(format!("text {i}\n")));
                assert_eq!(row.licence.as_deref(), licence[i]);
            }
        }
        write(&path, &[("text", &[])], 1);
        assert_eq!(rows(&path, TEXT).unwrap(), []);
        write(&path, &[("text", &[None, Some("a")])], 2);
        let found: Vec<_> = rows(&path, TEXT).unwrap().into_iter().map(|row| row.text.unwrap()).collect();
        assert_eq!(found, ["", "a"], "a null is an empty text");
    }

    #[test]
    fn a_column_must_be_there_and_hold_strings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd.parquet");
        write_odd(&path);
        let of = |text| rows(&path, Fields { text, licence: Some("meta.licence"), ..TEXT });
        let raw = of("raw").unwrap();
        let texts: Vec<_> = raw.iter().map(|row| row.text.as_deref()).collect();
        assert_eq!(texts, [Some("one"), None, Some("three")], "the second is not UTF-8");
        let licences: Vec<_> = raw.iter().map(|row| row.licence.as_deref()).collect();
        assert_eq!(licences, [None, None, Some("MIT")], "the struct or the string may be null");
        for (column, message) in [
            ("text", "there is no column `text`; the file has `n`, `list`, `meta.licence`, `raw`"),
            ("n", "the column `n` is not one of strings"),
            ("list", "the column `list` is not one of strings"),
        ] {
            assert_eq!(of(column).unwrap_err(), format!("{}: {message}", path.display()));
        }
    }

    #[test]
    fn a_file_cut_off_anywhere_is_one_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.parquet");
        let texts: Vec<String> = (0..100).map(|i| format!("text {i}")).collect();
        let text: Vec<_> = texts.iter().map(|text| Some(text.as_str())).collect();
        write(&path, &[("text", &text)], 40);
        let whole = std::fs::read(&path).unwrap();
        for len in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..len]).unwrap();
            let error = rows(&path, TEXT).unwrap_err();
            assert!(error.starts_with(&format!("{}: not a sound Parquet file (", path.display())), "{error}");
            assert!(error.ends_with("); it may be cut off: fetch or write it again"), "{error}");
        }
        // A page that was overwritten: the footer is sound and the text is not.
        let mut broken = whole.clone();
        broken[4..60].fill(0xff);
        std::fs::write(&path, &broken).unwrap();
        assert!(rows(&path, TEXT).unwrap_err().contains("not a sound Parquet file ("));
    }

    #[test]
    fn a_compression_that_is_not_supported_is_named() {
        let error = readable(Compression::LZO).unwrap_err();
        assert!(error.starts_with("is compressed with LZO, which is not supported; "), "{error}");
    }

    #[test]
    fn every_usual_compression_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        let texts: Vec<String> = (0..100).map(|i| format!("text {} of the same words", i % 7)).collect();
        let text: Vec<_> = texts.iter().map(|text| Some(text.as_str())).collect();
        for codec in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::BROTLI(BrotliLevel::default()),
            Compression::ZSTD(ZstdLevel::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
        ] {
            write_as(codec, &path, &[("text", &text)], 40);
            let found: Vec<_> = rows(&path, TEXT).unwrap().into_iter().map(|row| row.text.unwrap()).collect();
            assert_eq!(found, texts, "{codec}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn bytes_that_were_overwritten_are_rows_or_an_error(at in any::<Index>(), byte in any::<u8>(), n in 1usize..4) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("t.parquet");
            write(&path, &[("text", &[Some("a text"), None, Some("another text")])], 2);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at..].iter_mut().take(n).for_each(|b| *b = byte);
            std::fs::write(&path, &bytes).unwrap();
            match rows(&path, TEXT) {
                Ok(rows) => prop_assert!(rows.len() <= 64, "{} rows", rows.len()),
                Err(error) => prop_assert!(error.starts_with(&path.display().to_string())),
            }
        }
    }
}
