//! The canonical encoding of values that enter keys. Knows nothing of what they mean.
//!
//! Every value has a type tag and a definite length; maps are sorted by the bytes of their keys; floats go in by their bits.
//! [`Value::decode`] undoes [`Value::encode`] (a property test holds this), so two different values never share an encoding.

use std::collections::BTreeMap;

/// A value as it enters a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`; not the same as an absent map entry, and not the same as an empty text.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer that fits `i64` or `u64`.
    Int(i128),
    /// A finite number; `1.0` is not the integer `1`, and `-0.0` is not `0.0`.
    Float(f64),
    /// A text.
    Text(String),
    /// Raw bytes, such as a digest.
    Bytes(Vec<u8>),
    /// Values in order.
    List(Vec<Value>),
    /// Values by name.
    Map(BTreeMap<String, Value>),
}

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const TEXT: u8 = 5;
const BYTES: u8 = 6;
const LIST: u8 = 7;
const MAP: u8 = 8;

/// Integers beyond JSON's are refused, so that the stored key reads back as the one that was hashed.
const INTS: std::ops::RangeInclusive<i128> = i64::MIN as i128..=u64::MAX as i128;

const DEEPEST: usize = 128;

/// Why bytes are no encoded value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("the encoding ends too early")]
    Short,
    /// Bytes follow the value.
    #[error("bytes follow the value")]
    Trailing,
    /// A tag that no type has.
    #[error("unknown type tag {0}")]
    Tag(u8),
    /// A value that the encoder never writes: an unsorted map, a NaN, a text that is not UTF-8.
    #[error("not in canonical form: {0}")]
    NotCanonical(&'static str),
}

impl Value {
    /// The canonical bytes.
    ///
    /// # Panics
    /// On a float that is not finite and on an integer beyond 64 bits: JSON and TOML parameters hold none.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(NULL),
            Self::Bool(false) => out.push(FALSE),
            Self::Bool(true) => out.push(TRUE),
            Self::Int(i) => {
                assert!(INTS.contains(i), "integer {i} does not fit 64 bits");
                out.push(INT);
                out.extend_from_slice(&i.to_be_bytes());
            }
            Self::Float(x) => {
                assert!(x.is_finite(), "keys take finite numbers only, not {x}");
                out.push(FLOAT);
                out.extend_from_slice(&x.to_bits().to_be_bytes());
            }
            Self::Text(text) => framed(out, TEXT, text.as_bytes()),
            Self::Bytes(bytes) => framed(out, BYTES, bytes),
            Self::List(items) => {
                out.push(LIST);
                out.extend_from_slice(&(items.len() as u64).to_be_bytes());
                for item in items {
                    item.write(out);
                }
            }
            Self::Map(map) => {
                out.push(MAP);
                out.extend_from_slice(&(map.len() as u64).to_be_bytes());
                for (name, value) in map {
                    framed(out, TEXT, name.as_bytes());
                    value.write(out);
                }
            }
        }
    }

    /// The value that `bytes` encode.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { bytes };
        let value = reader.value(0)?;
        if reader.bytes.is_empty() { Ok(value) } else { Err(DecodeError::Trailing) }
    }

    /// A map from names to values.
    pub fn map<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Map(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

fn framed(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    out.extend_from_slice(bytes);
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Self::Int(i.into()),
                (None, Some(u)) => Self::Int(u.into()),
                (None, None) => Self::Float(n.as_f64().expect("a JSON number is an integer or a float")),
            },
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            // Sorted here: the order of a JSON object depends on features that other crates turn on.
            Json::Object(map) => Self::Map(map.iter().map(|(k, v)| (k.clone(), v.into())).collect()),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.bytes.split_at_checked(n).ok_or(DecodeError::Short)?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?.try_into().map_err(|_| DecodeError::Short)
    }

    fn len(&mut self) -> Result<usize, DecodeError> {
        let n = usize::try_from(u64::from_be_bytes(self.array()?)).map_err(|_| DecodeError::Short)?;
        // Each item takes at least a byte, so a longer claim is cut short; this also bounds what is allocated.
        if n > self.bytes.len() { Err(DecodeError::Short) } else { Ok(n) }
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let n = self.len()?;
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| DecodeError::NotCanonical("not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn value(&mut self, depth: usize) -> Result<Value, DecodeError> {
        if depth > DEEPEST {
            return Err(DecodeError::NotCanonical("nested too deeply"));
        }
        Ok(match self.take(1)?[0] {
            NULL => Value::Null,
            FALSE => Value::Bool(false),
            TRUE => Value::Bool(true),
            INT => {
                let i = i128::from_be_bytes(self.array()?);
                if !INTS.contains(&i) {
                    return Err(DecodeError::NotCanonical("integer beyond 64 bits"));
                }
                Value::Int(i)
            }
            FLOAT => {
                let x = f64::from_bits(u64::from_be_bytes(self.array()?));
                if !x.is_finite() {
                    return Err(DecodeError::NotCanonical("number not finite"));
                }
                Value::Float(x)
            }
            TEXT => Value::Text(self.text()?),
            BYTES => {
                let n = self.len()?;
                Value::Bytes(self.take(n)?.to_vec())
            }
            LIST => {
                let n = self.len()?;
                Value::List((0..n).map(|_| self.value(depth + 1)).collect::<Result<_, _>>()?)
            }
            MAP => self.map(depth)?,
            tag => return Err(DecodeError::Tag(tag)),
        })
    }

    fn map(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut map = BTreeMap::new();
        for _ in 0..self.len()? {
            if self.take(1)?[0] != TEXT {
                return Err(DecodeError::NotCanonical("map key is no text"));
            }
            let name = self.text()?;
            if map.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(DecodeError::NotCanonical("map is not sorted"));
            }
            map.insert(name, self.value(depth + 1)?);
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests;
