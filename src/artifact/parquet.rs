//! Splits as Parquet files, for readers of data sets. Knows no selection; writes only.

use std::{fs::File, path::Path, sync::Arc};

use parquet::{
    basic::Compression,
    data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};

use super::{ArtifactError, splits::Chosen};

/// The columns of [`Chosen`]. Marks are JSON text, since few readers need them.
const SCHEMA: &str = "message split {
    required binary id (UTF8);
    required binary text (UTF8);
    required binary source (UTF8);
    required binary licence (UTF8);
    required int64 n_tokens;
    required binary bucket (UTF8);
    required int32 cluster;
    required binary reason (UTF8);
    required int32 rank;
    required int64 score;
    required int64 margin;
    required binary marks (UTF8);
    required binary split (UTF8);
    optional int64 density;
    required int32 recalls;
    required int32 recall_typical;
    required int32 recall_longest;
    optional int64 context_gain;
    optional int64 context_gain_error;
    required boolean special_tokens;
}";

/// Rows per row group.
const GROUP: usize = 4096;

/// Writes the rows as one file. The bytes depend on the rows only: no statistics of the writer, no time.
pub fn write(path: &Path, rows: &[Chosen]) -> Result<(), ArtifactError> {
    try_write(path, rows).map_err(|e| ArtifactError::io(path)(std::io::Error::other(e)))
}

fn try_write(path: &Path, rows: &[Chosen]) -> Result<(), ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("mla-run".to_owned())
        .build();
    let mut file = SerializedFileWriter::new(File::create(path)?, schema, Arc::new(properties))?;
    for rows in rows.chunks(GROUP) {
        let mut group = file.next_row_group()?;
        write_group(&mut group, rows)?;
        group.close()?;
    }
    file.close()?;
    Ok(())
}

fn write_group(group: &mut SerializedRowGroupWriter<'_, File>, rows: &[Chosen]) -> Result<(), ParquetError> {
    let marks: Result<Vec<String>, _> = rows.iter().map(|row| serde_json::to_string(&row.marks)).collect();
    let marks = marks.map_err(|e| ParquetError::External(e.into()))?;
    let text = |of: fn(&Chosen) -> &str| rows.iter().map(|row| ByteArray::from(of(row))).collect::<Vec<_>>();
    column::<ByteArrayType>(group, &text(|row| &row.id))?;
    column::<ByteArrayType>(group, &text(|row| &row.text))?;
    column::<ByteArrayType>(group, &text(|row| &row.source))?;
    column::<ByteArrayType>(group, &text(|row| &row.licence))?;
    column::<Int64Type>(group, &rows.iter().map(|row| row.n_tokens as i64).collect::<Vec<_>>())?;
    column::<ByteArrayType>(group, &text(|row| &row.bucket))?;
    column::<Int32Type>(group, &rows.iter().map(|row| row.cluster as i32).collect::<Vec<_>>())?;
    column::<ByteArrayType>(group, &text(|row| &row.reason))?;
    column::<Int32Type>(group, &rows.iter().map(|row| row.rank as i32).collect::<Vec<_>>())?;
    column::<Int64Type>(group, &rows.iter().map(|row| row.score).collect::<Vec<_>>())?;
    column::<Int64Type>(group, &rows.iter().map(|row| row.margin).collect::<Vec<_>>())?;
    column::<ByteArrayType>(group, &marks.iter().map(|m| ByteArray::from(m.as_str())).collect::<Vec<_>>())?;
    column::<ByteArrayType>(group, &text(|row| &row.split))?;
    optional(group, rows, |row| row.density)?;
    let numbers = |of: fn(&Chosen) -> u32| rows.iter().map(|row| of(row) as i32).collect::<Vec<_>>();
    column::<Int32Type>(group, &numbers(|row| row.recalls))?;
    column::<Int32Type>(group, &numbers(|row| row.recall_typical))?;
    column::<Int32Type>(group, &numbers(|row| row.recall_longest))?;
    optional(group, rows, |row| row.context_gain)?;
    optional(group, rows, |row| row.context_gain_error)?;
    column::<BoolType>(group, &rows.iter().map(|row| row.special_tokens).collect::<Vec<_>>())
}

fn optional(
    group: &mut SerializedRowGroupWriter<'_, File>,
    rows: &[Chosen],
    of: fn(&Chosen) -> Option<i64>,
) -> Result<(), ParquetError> {
    let values: Vec<i64> = rows.iter().filter_map(of).collect();
    let there: Vec<i16> = rows.iter().map(|row| i16::from(of(row).is_some())).collect();
    let mut column = group.next_column()?.expect("the schema has a column for each call");
    column.typed::<Int64Type>().write_batch(&values, Some(&there), None)?;
    column.close()
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: &[T::T],
) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.expect("the schema has a column for each call");
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

#[cfg(test)]
mod tests {
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::{Field, RowAccessor},
    };

    use proptest::{
        prelude::{ProptestConfig, any},
        prop_assert_eq, proptest,
    };

    use super::*;
    use crate::artifact::texts::Mark;

    fn chosen(i: u32) -> Chosen {
        Chosen {
            id: format!("{i:064}"),
            text: format!("text\n{i} with \"signs\" é"),
            special_tokens: false,
            source: "a/b".into(),
            licence: String::new(),
            n_tokens: 3000 + i as usize,
            bucket: "gap".into(),
            cluster: i % 7,
            reason: "mix".into(),
            rank: i,
            score: -i64::from(i),
            margin: 1 << 40,
            split: "calib_mixed_golden".into(),
            density: i.is_multiple_of(3).then_some(-7 - i64::from(i)),
            recalls: i,
            recall_typical: 3 * i,
            recall_longest: 4 * i,
            context_gain: i.is_multiple_of(5).then_some(i64::from(i) - 9),
            context_gain_error: i.is_multiple_of(10).then_some(i64::from(i)),
            marks: if i == 1 { vec![Mark { start: 5, end: 6, stated: 0, choices: 2 }] } else { vec![] },
        }
    }

    #[test]
    fn every_value_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.parquet");
        let rows: Vec<_> = (0..GROUP as u32 + 2).map(chosen).collect();
        write(&path, &rows).unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        let mut n = 0;
        for (row, expected) in reader.get_row_iter(None).unwrap().map(Result::unwrap).zip(&rows) {
            assert_eq!(row.get_string(0).unwrap(), &expected.id);
            assert_eq!(row.get_string(1).unwrap(), &expected.text);
            assert_eq!(row.get_long(4).unwrap(), expected.n_tokens as i64);
            assert_eq!(row.get_int(6).unwrap(), expected.cluster as i32);
            assert_eq!(row.get_int(8).unwrap(), expected.rank as i32);
            assert_eq!(row.get_long(9).unwrap(), expected.score);
            let marks = row.get_string(11).unwrap();
            assert_eq!(serde_json::from_str::<Vec<Mark>>(marks).unwrap(), expected.marks);
            assert_eq!(row.get_string(12).unwrap(), "calib_mixed_golden");
            assert_eq!(row.get_long(13).ok(), expected.density);
            assert_eq!(row.get_long(17).ok(), expected.context_gain);
            assert_eq!(row.get_long(18).ok(), expected.context_gain_error);
            let recalls = [14, 15, 16].map(|i| row.get_int(i).unwrap() as u32);
            assert_eq!(recalls, [expected.recalls, expected.recall_typical, expected.recall_longest]);
            let names: Vec<_> =
                row.get_column_iter().map(|(name, _): (&String, &Field)| name.clone()).collect();
            let json = serde_json::to_value(expected).unwrap();
            assert!(json.as_object().unwrap().keys().all(|key| names.contains(key)), "{names:?}");
            n += 1;
        }
        assert_eq!(n, rows.len());
    }

    #[test]
    fn equal_rows_give_equal_bytes_and_no_rows_give_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |name: &str, rows: &[Chosen]| {
            write(&dir.path().join(name), rows).unwrap();
            std::fs::read(dir.path().join(name)).unwrap()
        };
        let rows = [chosen(1), chosen(2)];
        assert_eq!(bytes("a", &rows), bytes("b", &rows));
        bytes("none", &[]);
        let reader = SerializedFileReader::new(File::open(dir.path().join("none")).unwrap()).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    }

    #[test]
    fn the_columns_are_those_of_a_chosen_row_with_their_types() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.parquet");
        write(&path, &[chosen(1)]).unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let schema = reader.metadata().file_metadata().schema_descr();
        let columns: Vec<_> = schema
            .columns()
            .iter()
            .map(|c| {
                let level = i16::from(["density", "context_gain", "context_gain_error"].contains(&c.name()));
                assert_eq!((c.max_def_level(), c.max_rep_level()), (level, 0), "{}", c.name());
                (c.name(), c.physical_type().to_string(), c.converted_type().to_string())
            })
            .collect();
        let text = |name| (name, "BYTE_ARRAY".to_owned(), "UTF8".to_owned());
        let number = |name, kind: &str| (name, kind.to_owned(), "NONE".to_owned());
        assert_eq!(
            columns,
            [
                text("id"),
                text("text"),
                text("source"),
                text("licence"),
                number("n_tokens", "INT64"),
                text("bucket"),
                number("cluster", "INT32"),
                text("reason"),
                number("rank", "INT32"),
                number("score", "INT64"),
                number("margin", "INT64"),
                text("marks"),
                text("split"),
                number("density", "INT64"),
                number("recalls", "INT32"),
                number("recall_typical", "INT32"),
                number("recall_longest", "INT32"),
                number("context_gain", "INT64"),
                number("context_gain_error", "INT64"),
                number("special_tokens", "BOOLEAN"),
            ]
        );
        let json = serde_json::to_value(Chosen {
            density: Some(0),
            context_gain: Some(0),
            context_gain_error: Some(0),
            special_tokens: true,
            ..chosen(1)
        })
        .unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        let mut names: Vec<_> = columns.iter().map(|(name, ..)| (*name).to_owned()).collect();
        names.sort_unstable();
        assert!(fields.iter().all(|field| names.contains(field)) && fields.len() == names.len());
        assert_eq!(reader.metadata().file_metadata().created_by(), Some("mla-run"));
        let group = reader.metadata().row_group(0);
        assert!(group.columns().iter().all(|c| c.compression() == Compression::SNAPPY));
    }

    #[test]
    fn every_row_says_whether_it_holds_special_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.parquet");
        let rows = [chosen(1), Chosen { special_tokens: true, ..chosen(2) }];
        write(&path, &rows).unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let mut names =
            reader.metadata().file_metadata().schema_descr().columns().iter().map(|c| c.name().to_owned());
        assert_eq!(names.next_back().as_deref(), Some("special_tokens"));
        let found: Vec<_> =
            reader.get_row_iter(None).unwrap().map(|row| row.unwrap().get_bool(19).unwrap()).collect();
        assert_eq!(found, [false, true]);
    }

    #[test]
    fn rows_are_cut_into_groups_and_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.parquet");
        for (n, groups) in [(1, 1), (GROUP - 1, 1), (GROUP, 1), (GROUP + 1, 2), (2 * GROUP, 2)] {
            let rows: Vec<_> = (0..n as u32).map(|i| Chosen { text: String::new(), ..chosen(i) }).collect();
            write(&path, &rows).unwrap();
            let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
            assert_eq!(reader.num_row_groups(), groups, "{n} rows");
            let ranks = reader.get_row_iter(None).unwrap().map(|row| row.unwrap().get_int(8).unwrap());
            assert!(ranks.eq(0..n as i32), "{n} rows");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_row_comes_back(
            words in proptest::collection::vec(any::<String>(), 5),
            n_tokens in 0usize..1 << 40,
            score in any::<i64>(),
            margin in any::<i64>(),
            rank in 0u32..1 << 31,
        ) {
            let [text, source, licence, bucket, reason] = words.try_into().unwrap();
            let row =
                Chosen { text, source, licence, n_tokens, bucket, reason, rank, score, margin, ..chosen(1) };
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("split.parquet");
            write(&path, std::slice::from_ref(&row)).unwrap();
            let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
            let read = reader.get_row_iter(None).unwrap().next().unwrap().unwrap();
            let text = |i| read.get_string(i).unwrap().as_str();
            prop_assert_eq!(
                [text(1), text(2), text(3), text(5), text(7)],
                [&*row.text, &*row.source, &*row.licence, &*row.bucket, &*row.reason]
            );
            let long = |i| read.get_long(i).unwrap();
            prop_assert_eq!([long(4), long(9), long(10)], [n_tokens as i64, score, margin]);
            prop_assert_eq!(read.get_int(8).unwrap(), rank as i32);
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let path = tempfile::tempdir().unwrap().path().join("no/split.parquet");
        let error = write(&path, &[]).unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");
    }
}
