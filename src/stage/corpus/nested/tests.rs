//! Nested rows: what comes back, what is refused, and damaged files.

use parquet::{
    column::writer::ColumnWriter,
    data_type::ByteArray,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use proptest::{
    prelude::{ProptestConfig, any},
    prop_assert, proptest,
    sample::Index,
};

use super::*;

/// Values of one column with its definition and repetition levels.
type Levels<'a> = (&'a [&'a [u8]], &'a [i16], &'a [i16]);

/// As data sets are written: a list of structs, with a nullable string inside, and a column of JSON.
const SCHEMA: &str = "message m {
    optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); } } }
    optional binary tools (UTF8);
    optional group meta { optional binary licence (UTF8); }
    optional binary raw;
}";

/// Three rows: two messages, no list, an empty list.
const ROWS: [Levels<'static>; 5] = [
    (&[b"user", b"assistant"], &[4, 4, 0, 1], &[0, 1, 0, 0]),
    (&[b"Hi"], &[4, 3, 0, 1], &[0, 1, 0, 0]),
    (&[b"[]", b"x"], &[1, 1, 0], &[0, 0, 0]),
    (&[b"MIT"], &[2, 1, 0], &[0, 0, 0]),
    (&[b"plain", b"caf\xe9"], &[1, 1, 0], &[0, 0, 0]),
];

/// Writes columns of strings under any schema.
pub(in super::super) fn write(path: &Path, schema: &str, columns: &[Levels<'_>]) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut file = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = file.next_row_group().unwrap();
    for (values, definition, repetition) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let ColumnWriter::ByteArrayColumnWriter(writer) = column.untyped() else {
            panic!("a column of strings")
        };
        let values: Vec<ByteArray> = values.iter().map(|v| ByteArray::from(v.to_vec())).collect();
        writer.write_batch(&values, Some(definition), Some(repetition)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
}

fn rows(path: &Path, wanted: &[Wanted<'_>]) -> Result<Vec<Option<String>>, String> {
    let mut found = Vec::new();
    let mut each = |record: Record| {
        assert_eq!(record.number, found.len() + 1);
        found.push(record.value.map(|value| serde_json::to_string(&value).unwrap()));
        Ok::<(), CorpusError>(())
    };
    read(path, wanted, &mut each).map_err(|e| e.to_string())?;
    Ok(found)
}

fn sample() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    write(&path, SCHEMA, &ROWS);
    (dir, path)
}

#[test]
fn lists_of_structs_come_back_as_json() {
    let (_dir, path) = sample();
    let found = rows(&path, &[("messages", true), ("tools", true), ("meta.licence", true)]).unwrap();
    let expected = [
        r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":null}],"tools":"[]","meta.licence":"MIT"}"#,
        r#"{"messages":null,"tools":"x","meta.licence":null}"#,
        r#"{"messages":[],"tools":null,"meta.licence":null}"#,
    ];
    assert_eq!(found, expected.map(|row| Some(row.to_owned())));
}

#[test]
fn a_column_that_is_not_there_is_an_error_where_it_is_needed() {
    let (_dir, path) = sample();
    assert_eq!(
        rows(&path, &[("tools", true), ("functions", false)]).unwrap()[0].as_deref(),
        Some(r#"{"tools":"[]"}"#)
    );
    for name in ["functions", "meta.author", "tools.x", "messages.", ""] {
        let error = rows(&path, &[(name, true)]).unwrap_err();
        let why = format!("there is no column `{name}`; the file has `messages`, `tools`, `meta`, `raw`");
        assert_eq!(error, format!("{}: {why}", path.display()));
    }
}

#[test]
fn a_string_that_is_not_utf8_takes_its_row_along() {
    let (_dir, path) = sample();
    let found = rows(&path, &[("raw", true)]).unwrap();
    assert_eq!(found, [Some(r#"{"raw":"plain"}"#.to_owned()), None, Some(r#"{"raw":null}"#.to_owned())]);
}

#[test]
fn numbers_and_times_have_a_form() {
    let one = |field: Field| serde_json::to_string(&value(&field, &mut 0).unwrap()).unwrap();
    for (field, expected) in [
        (Field::Bool(true), "true"),
        (Field::Byte(-1), "-1"),
        (Field::ULong(u64::MAX), "18446744073709551615"),
        (Field::Float(0.5), "0.5"),
        (Field::Double(-0.1), "-0.1"),
        (Field::Date(0), "\"1970-01-01\""),
    ] {
        assert_eq!(one(field).replace(" +00:00", ""), expected);
    }
}

#[test]
fn a_file_cut_off_anywhere_is_one_clear_error() {
    let (dir, path) = sample();
    let whole = std::fs::read(&path).unwrap();
    let cut = dir.path().join("cut.parquet");
    for len in (0..whole.len()).step_by(7) {
        std::fs::write(&cut, &whole[..len]).unwrap();
        let error = rows(&cut, &[("messages", true)]).unwrap_err();
        assert!(error.starts_with(&format!("{}: not a sound Parquet file (", cut.display())), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn bytes_that_were_overwritten_are_rows_or_an_error(at in any::<Index>(), byte in any::<u8>(), n in 1usize..4) {
        let (dir, path) = sample();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at..].iter_mut().take(n).for_each(|b| *b = byte);
        let path = dir.path().join("odd.parquet");
        std::fs::write(&path, &bytes).unwrap();
        match rows(&path, &[("messages", true), ("tools", false)]) {
            Ok(rows) => prop_assert!(rows.len() <= 64, "{} rows", rows.len()),
            Err(error) => prop_assert!(error.starts_with(&path.display().to_string())),
        }
    }
}
