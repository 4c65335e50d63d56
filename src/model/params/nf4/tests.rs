//! NF4 weights through [`Params`]: what bitsandbytes wrote (`tests/golden/nf4.py`), what is written here, and every fault.

use std::path::{Path, PathBuf};

use super::*;
use crate::{
    artifact::{
        Artifact,
        checkpoint::{Checkpoint, Draft, Raw, files_in},
    },
    kernel::testing::{flat, noise},
    model::Params,
};

type Tensors = BTreeMap<String, Owned>;

const F32: Form = Form { dtype: WeightDtype::Float32, double: false };
const BF16: Form = Form { dtype: WeightDtype::Bfloat16, double: false };
const DOUBLE: Form = Form { double: true, ..BF16 };

fn golden_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nf4")
}

fn golden() -> Checkpoint {
    let path = golden_path();
    let files = ["config.json", "model.safetensors"].map(|name| (name.to_owned(), path.join(name)));
    Checkpoint::load(&files.into()).unwrap()
}

/// Values that bitsandbytes got, and what it got them from.
fn expected(name: &str) -> Vec<f32> {
    let file = golden_path().join("expected.safetensors");
    let files = [("config.json", golden_path().join("config.json")), ("model.safetensors", file)];
    let files = files.map(|(name, path)| (name.to_owned(), path));
    Checkpoint::load(&files.into()).unwrap().raw(name).unwrap().to_f32().unwrap()
}

/// The tensors of one golden weight.
fn packed(name: &str) -> Tensors {
    let of_it = |(key, _): &(String, Owned)| key.starts_with(name);
    Draft::copy_of(&golden()).unwrap().tensors.into_iter().filter(of_it).collect()
}

fn saved(tensors: &Tensors) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    Draft { tensors: tensors.clone(), ..Draft::default() }.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, checkpoint)
}

/// A weight as the model gets it, or the problems.
fn got(tensors: &Tensors, name: &str, shape: [usize; 2]) -> Result<Vec<f32>, Vec<String>> {
    let (_dir, checkpoint) = saved(tensors);
    let params = Params::new(&checkpoint, &|_| false);
    let param = params.get(name, &shape);
    assert_eq!(param.tensor.dims(), shape);
    match params.finish() {
        Ok(_) => Ok(flat(&param.tensor)),
        Err(crate::model::ModelError::Tensors(lines)) => Err(lines),
        Err(other) => panic!("{other}"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn floats(tensor: &Owned) -> Vec<f32> {
    Raw { dtype: tensor.dtype, shape: &tensor.shape, bytes: &tensor.bytes }.to_f32().unwrap()
}

fn json(tensor: &Owned) -> serde_json::Value {
    serde_json::from_slice(&tensor.bytes).unwrap()
}

/// A weight [24, 60] whose rows differ in size; the last of its 23 blocks is short.
fn matrix() -> Vec<f32> {
    noise(9, 24 * 60, 0.1).iter().enumerate().map(|(i, x)| x * (1 + i / 60 % 5) as f32).collect()
}

#[test]
fn what_bitsandbytes_wrote_is_read_to_the_bit() {
    for (name, shape) in [("single", [5, 77]), ("wide", [4, 100])] {
        let values = got(&packed(name), &format!("{name}.weight"), shape).unwrap();
        assert_eq!(bits(&values), bits(&expected(&format!("{name}.values"))), "{name}");
    }
    let values = got(&packed("double"), "double.weight", [96, 172]).unwrap();
    let rows: Vec<f32> = values.chunks(172).step_by(12).flatten().copied().collect();
    assert_eq!(bits(&rows), bits(&expected("double.values")));
}

#[test]
fn what_is_written_is_what_bitsandbytes_writes() {
    let state = "single.weight.quant_state.bitsandbytes__nf4";
    let mut theirs = packed("single");
    let mut ours = write("single.weight", &expected("single.source"), [5, 77], F32).unwrap();
    let states = [&mut theirs, &mut ours].map(|tensors| json(&tensors.remove(state).unwrap()));
    assert_eq!(states[0], states[1]);
    assert_eq!(ours, theirs);
}

#[test]
fn a_doubly_quantised_weight_has_the_tensors_that_theirs_has() {
    let key = |part: &str| format!("double.weight.{part}");
    let mut theirs = packed("double");
    let values = got(&theirs, "double.weight", [96, 172]).unwrap();
    let ours = write("double.weight", &values, [96, 172], DOUBLE).unwrap();
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    assert_eq!(ours["double.weight"], theirs["double.weight"], "scales move, codes stay");
    assert_eq!(ours[&key("nested_quant_map")], theirs[&key("nested_quant_map")]);
    let state = json(&theirs.remove(&key(STATE)).unwrap());
    let fields = |state: &serde_json::Value| {
        state.as_object().unwrap().keys().filter(|key| *key != "nested_offset").cloned().collect::<Vec<_>>()
    };
    let written = json(&ours[&key(STATE)]);
    assert_eq!(fields(&written), fields(&state));
    for field in fields(&state) {
        assert_eq!(written[&field], state[&field], "{field}");
    }
    for (name, tensor) in &theirs {
        assert_eq!((tensor.dtype, &tensor.shape), (ours[name].dtype, &ours[name].shape), "{name}");
    }
}

#[test]
fn what_is_written_is_read_back_exactly() {
    for (dtype, double) in [
        (WeightDtype::Float32, false),
        (WeightDtype::Float32, true),
        (WeightDtype::Bfloat16, false),
        (WeightDtype::Bfloat16, true),
        (WeightDtype::Float16, true),
    ] {
        let form = Form { dtype, double };
        let tensors = write("w", &matrix(), [24, 60], form).unwrap();
        let mut scales = vec![0.0; 23];
        let (mut codes, mut want) = (vec![0; 720], vec![0.0; 1440]);
        let rounded: Vec<f32> = matrix().into_iter().map(|x| dtype.round(x)).collect();
        nf4::quantize(&rounded, nf4::BLOCK, &mut codes, &mut scales).unwrap();
        if double {
            let nested = absmax::quantize(&scales).unwrap();
            scales = absmax::dequantize(&nested, &absmax::map(), 256).unwrap();
        }
        nf4::dequantize(&codes, &scales, nf4::BLOCK, &mut want).unwrap();
        let want: Vec<f32> = want.into_iter().map(|x| dtype.round(x)).collect();
        assert_eq!(bits(&got(&tensors, "w", [24, 60]).unwrap()), bits(&want), "{form:?}");
        let far = want.iter().zip(matrix()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(far > 0.0 && far < 0.16 * 0.5, "{form:?}: {far}");
    }
}

#[test]
fn writing_what_was_read_changes_nothing() {
    for dtype in [WeightDtype::Float32, WeightDtype::Bfloat16, WeightDtype::Float16] {
        let form = Form { dtype, double: false };
        let once = write("w", &matrix(), [24, 60], form).unwrap();
        let values = got(&once, "w", [24, 60]).unwrap();
        assert_eq!(write("w", &values, [24, 60], form).unwrap(), once, "{dtype:?}");
    }
}

#[test]
fn a_second_double_quantisation_moves_scales_by_no_more_than_the_first() {
    let once = write("w", &matrix(), [24, 60], DOUBLE).unwrap();
    let values = got(&once, "w", [24, 60]).unwrap();
    let twice = write("w", &values, [24, 60], DOUBLE).unwrap();
    assert_eq!(twice["w"], once["w"]);
    for (a, b) in got(&twice, "w", [24, 60]).unwrap().iter().zip(values) {
        assert!((a - b).abs() <= 0.02 * b.abs(), "{a} {b}");
    }
}

#[test]
fn the_number_of_values_may_be_odd_or_none() {
    for [rows, cols] in [[1, 1], [3, 43], [0, 5]] {
        let values = noise(2, rows * cols, 1.0);
        for form in [F32, DOUBLE] {
            let tensors = write("w", &values, [rows, cols], form).unwrap();
            assert_eq!(tensors["w"].shape, [(rows * cols).div_ceil(2), 1]);
            assert_eq!(got(&tensors, "w", [rows, cols]).unwrap().len(), rows * cols);
        }
    }
}

#[test]
fn an_unpacked_weight_can_train() {
    let (_dir, checkpoint) = saved(&write("w", &matrix(), [24, 60], F32).unwrap());
    let params = Params::new(&checkpoint, &|name| name == "w");
    assert!(params.get("w", &[24, 60]).train);
    assert_eq!(params.finish().unwrap().into_keys().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn what_cannot_be_written_is_named() {
    let error = |values: [f32; 2], dtype, double| {
        write("layer.w", &values, [1, 2], Form { dtype, double }).unwrap_err().to_string()
    };
    assert_eq!(
        error([0.0, f32::NAN], WeightDtype::Float32, false),
        "`layer.w` cannot be written as NF4 of Float32: value 1 is NaN, and NF4 takes finite numbers only"
    );
    assert_eq!(
        error([7e4, 0.0], WeightDtype::Float16, true),
        "`layer.w` cannot be written as NF4 of Float16: value 0 is inf, and NF4 takes finite numbers only"
    );
    // Five scales of float16's largest number and one of 0: the level for a fifth of the range is a little more than a fifth.
    let values: Vec<f32> = (0..6 * 64).map(|i| if i < 5 * 64 { 65_504.0 } else { 0.0 }).collect();
    let told = |dtype, double| {
        write("w", &values, [6, 64], Form { dtype, double }).err().map(|error| error.to_string())
    };
    assert_eq!(told(WeightDtype::Float16, false), None);
    assert_eq!(told(WeightDtype::Bfloat16, true), None);
    let beyond =
        "`w` cannot be written as NF4 of Float16: absmax 0 is inf, and NF4 takes finite numbers only";
    assert_eq!(told(WeightDtype::Float16, true).unwrap(), beyond);
}

/// The problems that a weight [24, 60] has after `spoil`.
fn problems(form: Form, spoil: impl FnOnce(&mut Tensors)) -> Vec<String> {
    let mut tensors = write("w", &matrix(), [24, 60], form).unwrap();
    spoil(&mut tensors);
    got(&tensors, "w", [24, 60]).unwrap_err()
}

/// The problems after one field of the state was set, or removed.
fn with_field(form: Form, field: &str, value: Option<serde_json::Value>) -> Vec<String> {
    problems(form, |tensors| {
        let state = tensors.get_mut("w.quant_state.bitsandbytes__nf4").unwrap();
        let mut object = json(state);
        match value {
            Some(value) => object[field] = value,
            None => drop(object.as_object_mut().unwrap().remove(field)),
        }
        let bytes = object.to_string().into_bytes();
        *state = Owned::u8(&[bytes.len()], bytes);
    })
}

#[test]
fn every_missing_tensor_is_named() {
    let all = problems(DOUBLE, |tensors| tensors.retain(|name, _| name.ends_with("__nf4")));
    let names = ["w", "w.quant_map", "w.absmax", "w.nested_absmax", "w.nested_quant_map"];
    assert_eq!(all, names.map(|name| format!("`{name}` is missing")));
    let one = problems(F32, |tensors| drop(tensors.remove("w.absmax")));
    assert_eq!(one, ["`w.absmax` is missing"]);
    // Without its state a packed weight is a tensor of bytes.
    let none = problems(F32, |tensors| drop(tensors.remove("w.quant_state.bitsandbytes__nf4")));
    assert!(none[0].starts_with("`w` has shape [720, 1]"), "{none:?}");
}

#[test]
fn wrong_sizes_and_types_are_named() {
    let all = problems(DOUBLE, |tensors| {
        tensors.insert("w".into(), Owned::u8(&[721, 1], vec![0; 721]));
        tensors.insert("w.quant_map".into(), Owned::f32(&[15], &[0.0; 15]));
        tensors.insert("w.absmax".into(), Owned::f32(&[23], &[1.0; 23]));
        tensors.insert("w.nested_absmax".into(), Owned::u8(&[1], vec![1]));
        tensors.insert("w.nested_quant_map".into(), Owned::f32(&[255], &[0.0; 255]));
    });
    assert_eq!(
        all,
        [
            "`w` has shape [721, 1], expected [720, 1] for NF4",
            "`w.quant_map` has shape [15], expected [16] for NF4",
            "`w.absmax` has element type F32, expected U8",
            "`w.nested_absmax` has element type U8, expected F32",
            "`w.nested_quant_map` has shape [255], expected [256] for NF4",
        ]
    );
    let single = problems(F32, |tensors| {
        tensors.insert("w.absmax".into(), Owned::u8(&[23], vec![1; 23]));
        tensors.insert("w".into(), Owned::bf16(&[720, 1], &[0.0; 720]));
        let mut book = floats(&tensors["w.quant_map"]);
        book.swap(3, 4);
        tensors.insert("w.quant_map".into(), Owned::f32(&[16], &book));
    });
    assert_eq!(
        single,
        [
            "`w` has element type BF16, expected U8",
            "`w.quant_map` is not the code book of NF4",
            "`w.absmax` has element type U8, expected F32",
        ]
    );
}

#[test]
fn scales_that_are_not_finite_are_named() {
    let spoil = |name: &str, value: f32| {
        let name = name.to_owned();
        move |tensors: &mut Tensors| {
            let mut values = floats(&tensors[&name]);
            *values.last_mut().unwrap() = value;
            tensors.insert(name, Owned::f32(&[values.len()], &values));
        }
    };
    let told = "`w.absmax`: as Float32, absmax 22 is NaN, and NF4 takes finite numbers only";
    assert_eq!(problems(F32, spoil("w.absmax", f32::NAN)), [told]);
    let half = Form { dtype: WeightDtype::Float16, ..F32 };
    let told = "`w.absmax`: as Float16, absmax 22 is inf, and NF4 takes finite numbers only";
    assert_eq!(problems(half, spoil("w.absmax", 7e4)), [told]);
    let nested = problems(DOUBLE, spoil("w.nested_absmax", f32::INFINITY));
    assert!(nested[0].starts_with("`w.nested_absmax`: absmax 0 is "), "{nested:?}");
}

#[test]
fn a_state_that_means_something_else_is_refused() {
    let state = "`w.quant_state.bitsandbytes__nf4`: ";
    let check = |form, field, value, expected: &str| {
        let told = with_field(form, field, value);
        assert!(told.len() == 1 && told[0].starts_with(&format!("{state}{expected}")), "{told:?}");
    };
    check(F32, "quant_type", Some("fp4".into()), "quant_type is `fp4`, expected `nf4`");
    check(F32, "shape", Some(vec![60, 24].into()), "shape is [60, 24], expected [24, 60]");
    for size in [0, 48, 8192] {
        check(F32, "blocksize", Some(size.into()), &format!("blocksize is {size}, expected one of [32, 64"));
        check(
            DOUBLE,
            "nested_blocksize",
            Some(size.into()),
            &format!("nested_blocksize is {size}, expected"),
        );
    }
    check(F32, "dtype", Some("float64".into()), "unknown variant `float64`, expected one of `float32`");
    check(F32, "dtype", None, "missing field `dtype`");
    check(F32, "scale", Some(1.into()), "unknown field `scale`");
    let together = "nested_blocksize, nested_dtype (`float32`) and nested_offset are there together";
    check(F32, "nested_offset", Some(0.5.into()), together);
    check(DOUBLE, "nested_dtype", Some("float16".into()), together);
    check(DOUBLE, "nested_blocksize", None, together);
    let size = with_field(F32, "blocksize", Some(128.into()));
    assert_eq!(size, ["`w.absmax` has shape [23], expected [12] for NF4"]);
}

#[test]
fn several_faults_of_a_state_are_told_together_and_a_broken_one_by_its_place() {
    let bytes = |bytes: &[u8]| {
        let tensor = Owned::u8(&[bytes.len()], bytes.to_vec());
        problems(F32, |tensors| drop(tensors.insert("w.quant_state.bitsandbytes__nf4".into(), tensor)))
    };
    let two = bytes(br#"{"quant_type": "af4", "blocksize": 65, "dtype": "float32", "shape": [24, 60]}"#);
    assert_eq!(two.len(), 2, "{two:?}");
    for broken in [&b"{"[..], b"", b"[]", b"\xff\xfe", br#"{"quant_type": "nf4"}"#] {
        let told = bytes(broken);
        assert!(told.len() == 1 && told[0].contains("__nf4`: ") && told[0].contains("column"), "{told:?}");
    }
    let typed = problems(F32, |tensors| {
        tensors.insert("w.quant_state.bitsandbytes__nf4".into(), Owned::f32(&[1], &[0.0]));
    });
    assert_eq!(typed, ["`w.quant_state.bitsandbytes__nf4` has element type F32, expected U8"]);
}

#[test]
fn fp4_is_refused_by_its_name() {
    let told = problems(F32, |tensors| {
        let state = tensors.remove("w.quant_state.bitsandbytes__nf4").unwrap();
        tensors.insert("w.quant_state.bitsandbytes__fp4".into(), state);
    });
    assert_eq!(told, ["`w` is quantised as FP4; of bitsandbytes' types only NF4 is read"]);
}

#[test]
#[should_panic(expected = "as many values as the shape says")]
fn a_shape_of_other_size_is_a_mistake_of_the_caller() {
    drop(write("w", &[0.0; 3], [2, 2], F32));
}
