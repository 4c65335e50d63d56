//! Rows of a Parquet file whose columns hold lists and structs. Knows no meaning of theirs and no other format.

use std::{fs::File, path::Path, sync::Arc};

use minijinja::Value;
use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, reader::RowIter},
    schema::types::{SchemaDescriptor, Type},
};

use super::{
    CorpusError,
    columns::{ROWS, guard, plain, readable},
};

/// A column that is asked for, and whether it must be there. One inside a struct is named with dots.
pub(super) type Wanted<'a> = (&'a str, bool);

/// One row: an object with the columns that were asked for, by their names; `None` where a string is not UTF-8.
pub(super) struct Record {
    /// Its place in the file, from 1.
    pub(super) number: usize,
    pub(super) value: Option<Value>,
    /// About how many bytes it has.
    pub(super) bytes: u64,
}

/// Hands on every row of the file.
pub(super) fn read<E: From<CorpusError>>(
    path: &Path,
    wanted: &[Wanted<'_>],
    each: &mut dyn FnMut(Record) -> Result<(), E>,
) -> Result<(), E> {
    let file = File::open(path).map_err(CorpusError::io(path))?;
    let name = || path.display().to_string();
    let bad = |why: ParquetError| CorpusError::BadTable { path: name(), why: plain(&why) };
    let unfit = |why: String| CorpusError::BadColumn { path: name(), why };
    let reader = guard(|| SerializedFileReader::new(file)).map_err(bad)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let columns: Vec<Vec<&str>> =
        wanted.iter().map(|&wanted| column(schema, wanted)).collect::<Result<_, _>>().map_err(unfit)?;
    let roots: Vec<&str> = columns.iter().filter_map(|path| path.first().copied()).collect();
    let mut number = 0;
    for i in 0..reader.num_row_groups() {
        let group = guard(|| reader.get_row_group(i)).map_err(bad)?;
        for column in group.metadata().columns() {
            if column.column_path().parts().first().is_some_and(|root| roots.contains(&root.as_str())) {
                readable(column.compression()).map_err(unfit)?;
            }
        }
        let projection = projection(schema, &roots).map_err(bad)?;
        let rows = guard(|| RowIter::from_row_group(Some(projection), &*group)).map_err(bad)?;
        let mut rows = rows.with_batch_size(ROWS);
        for _ in 0..group.metadata().num_rows() {
            let row = guard(|| rows.next().transpose()).map_err(bad)?;
            let row = row.ok_or_else(|| bad(ParquetError::EOF(": the rows end early".to_owned())))?;
            number += 1;
            let mut bytes = 0;
            let fields: Vec<(String, Field)> = row.into_columns();
            let pairs = wanted.iter().zip(&columns).filter_map(|(&(name, _), path)| {
                let found = find(&fields, path)?;
                Some(value(found, &mut bytes).map(|value| (name, value)))
            });
            let pairs: Option<Vec<(&str, Value)>> = pairs.collect();
            each(Record { number, value: pairs.map(Value::from_pairs), bytes })?;
        }
    }
    Ok(())
}

/// The names from the root to a column, none where it is not there and need not be.
fn column<'a>(schema: &SchemaDescriptor, (name, needed): Wanted<'a>) -> Result<Vec<&'a str>, String> {
    let roots = schema.root_schema().get_fields();
    let has = |fields: &[Arc<Type>], name: &str| fields.iter().any(|field| field.name() == name);
    if has(roots, name) {
        return Ok(vec![name]);
    }
    let path: Vec<&str> = name.split('.').collect();
    let mut fields = roots;
    for (i, part) in path.iter().enumerate() {
        let Some(field) = fields.iter().find(|field| field.name() == *part) else { break };
        if i + 1 == path.len() {
            return Ok(path);
        }
        fields = if field.is_group() { field.get_fields() } else { &[] };
    }
    if !needed {
        return Ok(Vec::new());
    }
    let all: Vec<_> = roots.iter().map(|field| format!("`{}`", field.name())).collect();
    Err(format!("there is no column `{name}`; the file has {}", all.join(", ")))
}

/// The schema of some columns of the root.
fn projection(schema: &SchemaDescriptor, roots: &[&str]) -> Result<Type, ParquetError> {
    let root = schema.root_schema();
    let fields = root.get_fields().iter().filter(|field| roots.contains(&field.name()));
    Type::group_type_builder(root.name()).with_fields(fields.cloned().collect()).build()
}

/// What lies at a path; nothing where the path is none, or a struct on it is `null`.
fn find<'a>(fields: &'a [(String, Field)], path: &[&str]) -> Option<&'a Field> {
    let (first, rest) = path.split_first()?;
    let mut field = &fields.iter().find(|(name, _)| name == first)?.1;
    for part in rest {
        field = match field {
            Field::Group(row) => row.get_column_iter().find(|(name, _)| name == part)?.1,
            other => return matches!(other, Field::Null).then_some(other),
        };
    }
    Some(field)
}

/// The field as a value, and its bytes; `None` where a string is not UTF-8. What JSON has no form for is text.
fn value(field: &Field, bytes: &mut u64) -> Option<Value> {
    *bytes += 16;
    Some(match field {
        Field::Null => Value::from(()),
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float16(value) => Value::from(f64::from(*value)),
        Field::Float(value) => Value::from(f64::from(*value)),
        Field::Double(value) => Value::from(*value),
        Field::Str(text) => {
            *bytes += text.len() as u64;
            Value::from(text.as_str())
        }
        Field::Bytes(text) => {
            *bytes += text.len() as u64;
            Value::from(std::str::from_utf8(text.data()).ok()?)
        }
        Field::Group(row) => {
            let pairs =
                row.get_column_iter().map(|(name, field)| Some((name.as_str(), value(field, bytes)?)));
            Value::from_pairs(pairs.collect::<Option<Vec<_>>>()?)
        }
        Field::ListInternal(list) => {
            let values: Option<Vec<Value>> =
                list.elements().iter().map(|field| value(field, bytes)).collect();
            Value::from(values?)
        }
        Field::MapInternal(map) => {
            let pairs =
                map.entries().iter().map(|(key, field)| Some((value(key, bytes)?, value(field, bytes)?)));
            Value::from_pairs(pairs.collect::<Option<Vec<_>>>()?)
        }
        other => Value::from(other.to_string()),
    })
}

#[cfg(test)]
pub(super) mod tests;
