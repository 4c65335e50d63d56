//! The encoding of values: what it keeps apart, and what it refuses.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|i| Value::Int(i.into())),
        any::<u64>().prop_map(|u| Value::Int(u.into())),
        any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::Float),
        ".{0,12}".prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..12).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            prop::collection::btree_map(".{0,6}", inner, 0..6).prop_map(Value::Map),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(value in values()) {
        let bytes = value.encode();
        let back = Value::decode(&bytes).unwrap();
        prop_assert_eq!(back.encode(), bytes);
        prop_assert_eq!(back, value);
    }

    #[test]
    fn any_bytes_decode_to_one_value_or_none(bytes in prop::collection::vec(0..12_u8, 0..80)) {
        if let Ok(value) = Value::decode(&bytes) {
            prop_assert_eq!(value.encode(), bytes);
        }
    }

    #[test]
    fn a_changed_byte_is_another_value(value in values(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let bytes = value.encode();
        let mut other = bytes.clone();
        other[at.index(bytes.len())] ^= flip;
        if let Ok(decoded) = Value::decode(&other) {
            prop_assert_ne!(decoded.encode(), bytes);
        }
    }
}

#[test]
fn values_that_look_alike_differ() {
    let alike = [
        json!({}),
        json!({ "a": null }),
        json!({ "a": "" }),
        json!({ "a": [] }),
        json!({ "a": {} }),
        json!({ "a": false }),
        json!({ "a": 0 }),
        json!({ "a": 0.0 }),
        json!({ "a": -0.0 }),
        json!({ "a": "0" }),
        json!(["ab", "c"]),
        json!(["a", "bc"]),
        json!([["a"], "b"]),
        json!(["a", ["b"]]),
        json!(["abc"]),
    ];
    let encoded: std::collections::BTreeSet<Vec<u8>> =
        alike.iter().map(|j| Value::from(j).encode()).collect();
    assert_eq!(encoded.len(), alike.len());
}

#[test]
fn order_of_json_objects_does_not_matter() {
    let text = |s: &str| Value::from(&serde_json::from_str(s).unwrap()).encode();
    assert_eq!(text(r#"{"b":1,"a":{"y":2,"x":3}}"#), text(r#"{"a":{"x":3,"y":2},"b":1}"#));
}

#[test]
fn golden_bytes() {
    let value = Value::map([("n", Value::Int(-1)), ("x", Value::List(vec![Value::Float(1.5), Value::Null]))]);
    let n = [&[TEXT][..], &1_u64.to_be_bytes(), b"n", &[INT], &[255; 16]].concat();
    let list = [&[LIST][..], &2_u64.to_be_bytes(), &[FLOAT, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0, NULL]].concat();
    let x = [&[TEXT][..], &1_u64.to_be_bytes(), b"x", &list].concat();
    assert_eq!(value.encode(), [&[MAP][..], &2_u64.to_be_bytes(), &n, &x].concat());
    assert_eq!([NULL, FALSE, TRUE, INT, FLOAT, TEXT, BYTES, LIST, MAP], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn what_the_encoder_never_writes_is_refused() {
    let (sorted, mut swapped) = (Value::map([("a", Value::Null), ("b", Value::Null)]).encode(), Vec::new());
    swapped.extend_from_slice(&sorted[..9]);
    swapped.extend_from_slice(&sorted[20..]);
    swapped.extend_from_slice(&sorted[9..20]);
    assert_eq!(Value::decode(&swapped), Err(DecodeError::NotCanonical("map is not sorted")));
    let nan = [&[FLOAT][..], &f64::NAN.to_bits().to_be_bytes()].concat();
    assert_eq!(Value::decode(&nan), Err(DecodeError::NotCanonical("number not finite")));
    assert_eq!(Value::decode(&[NULL, NULL]), Err(DecodeError::Trailing));
    assert_eq!(Value::decode(&[LIST, 255, 255, 255, 255, 255, 255, 255, 255]), Err(DecodeError::Short));
    assert_eq!(Value::decode(&[99]), Err(DecodeError::Tag(99)));
    assert_eq!(Value::decode(&[]), Err(DecodeError::Short));
}

#[test]
fn an_encoding_cut_anywhere_is_short() {
    let value = Value::map([
        ("list", Value::List(vec![Value::Int(7), Value::Float(0.5), Value::Bytes(vec![1, 2])])),
        ("text", Value::Text("é".into())),
        ("none", Value::Null),
    ]);
    let bytes = value.encode();
    for end in 0..bytes.len() {
        assert_eq!(Value::decode(&bytes[..end]), Err(DecodeError::Short), "cut at {end}");
    }
}

#[test]
fn integers_are_those_of_json_and_toml() {
    for json in [json!(i64::MIN), json!(-1), json!(0), json!(i64::MAX), json!(u64::MAX)] {
        let value = Value::from(&json);
        assert_eq!(Value::decode(&value.encode()).as_ref(), Ok(&value));
        assert_eq!(value, Value::Int(json.to_string().parse().unwrap()));
    }
    for beyond in [i128::from(i64::MIN) - 1, i128::from(u64::MAX) + 1, i128::MAX] {
        let bytes = [&[INT][..], &beyond.to_be_bytes()].concat();
        assert_eq!(Value::decode(&bytes), Err(DecodeError::NotCanonical("integer beyond 64 bits")));
    }
}

#[test]
#[should_panic(expected = "does not fit 64 bits")]
fn an_integer_beyond_64_bits_is_refused() {
    Value::Int(i128::from(u64::MAX) + 1).encode();
}

#[test]
fn texts_and_names_are_utf_8_and_names_are_texts() {
    let framed = |tag: u8, bytes: &[u8]| [&[tag][..], &(bytes.len() as u64).to_be_bytes(), bytes].concat();
    let not_utf8 = Err(DecodeError::NotCanonical("not UTF-8"));
    assert_eq!(Value::decode(&framed(TEXT, b"\xff")), not_utf8);
    let map = |key: &[u8]| [&[MAP][..], &1_u64.to_be_bytes(), key, &[NULL]].concat();
    assert_eq!(Value::decode(&map(&framed(TEXT, b"\xff"))), not_utf8);
    let no_text = Err(DecodeError::NotCanonical("map key is no text"));
    assert_eq!(Value::decode(&map(&framed(BYTES, b"a"))), no_text);
    assert_eq!(Value::decode(&framed(BYTES, b"\xff")), Ok(Value::Bytes(vec![0xff])));
}

#[test]
fn a_map_names_each_of_its_values_once() {
    let entry = [&[TEXT][..], &1_u64.to_be_bytes(), b"a", &[NULL]].concat();
    let twice = [&[MAP][..], &2_u64.to_be_bytes(), &entry, &entry].concat();
    assert_eq!(Value::decode(&twice), Err(DecodeError::NotCanonical("map is not sorted")));
}

#[test]
fn a_deep_encoding_is_refused_and_not_followed() {
    let nested = |depth: usize| {
        let lists = [&[LIST][..], &1_u64.to_be_bytes()].concat().repeat(depth);
        [&lists[..], &[NULL]].concat()
    };
    assert!(Value::decode(&nested(DEEPEST)).is_ok());
    let deep = Err(DecodeError::NotCanonical("nested too deeply"));
    assert_eq!(Value::decode(&nested(DEEPEST + 1)), deep);
    assert_eq!(Value::decode(&nested(100_000)), deep);
}

#[test]
#[should_panic(expected = "finite numbers only")]
fn nan_is_refused() {
    Value::Float(f64::NAN).encode();
}
