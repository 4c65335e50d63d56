//! NF4 against its definition in f64, its own round trip, and what bitsandbytes packed (`tests/golden/nf4.py`).

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::kernel::testing::noise;

fn pack(values: &[f32], block: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut absmax) =
        (vec![255; values.len().div_ceil(2)], vec![f32::NAN; values.len().div_ceil(block)]);
    quantize(values, block, &mut codes, &mut absmax).unwrap();
    (codes, absmax)
}

fn unpack(codes: &[u8], absmax: &[f32], block: usize, n: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; n];
    dequantize(codes, absmax, block, &mut out).unwrap();
    out
}

fn round_trip(values: &[f32], block: usize) -> Vec<f32> {
    let (codes, absmax) = pack(values, block);
    unpack(&codes, &absmax, block, values.len())
}

/// The code of value `i`.
fn code(codes: &[u8], i: usize) -> usize {
    usize::from(if i.is_multiple_of(2) { codes[i / 2] >> 4 } else { codes[i / 2] & 15 })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_code_in_either_half_of_a_byte_under_its_block_s_scale() {
    let codes: Vec<u8> = (0..=255).collect();
    let absmax = [1.0, 0.37, 1e-38, 3e38, 0.0, -2.5, 1e-45, 7.0];
    let values = unpack(&codes, &absmax, 64, 512);
    for (i, value) in values.iter().enumerate() {
        let half = if i % 2 == 0 { i / 2 / 16 } else { i / 2 % 16 };
        let exact = f64::from(LEVELS[half]) * f64::from(absmax[i / 64]);
        assert_eq!(value.to_bits(), (exact as f32).to_bits(), "value {i}");
    }
}

#[test]
fn levels_are_quantiles_that_ascend_and_hold_zero_and_both_ends() {
    assert!(LEVELS.is_sorted_by(|a, b| a < b) && BORDERS.is_sorted_by(|a, b| a < b));
    assert_eq!((LEVELS[0], LEVELS[usize::from(ZERO)], LEVELS[15]), (-1.0, 0.0, 1.0));
    for (border, pair) in BORDERS.iter().zip(LEVELS.windows(2)) {
        let exact = f64::midpoint(f64::from(pair[0]), f64::from(pair[1]));
        assert!((f64::from(*border) - exact).abs() <= 2f64.powi(-25), "{border}, should be {exact}");
    }
}

#[test]
fn a_border_belongs_to_the_lower_code() {
    for scale in [1.0, 0.25, 2f32.powi(100), 2f32.powi(-100)] {
        for (i, border) in BORDERS.into_iter().enumerate() {
            let (codes, absmax) =
                pack(&[1.0, border, border.next_up(), border.next_down(), 0.0].map(|x| x * scale), 64);
            let got = [1, 2, 3].map(|at| code(&codes, at));
            assert_eq!((got, absmax[0]), ([i, i + 1, i], scale), "border {i} under {scale}");
        }
    }
}

#[test]
fn zeros_have_scale_zero_and_stay_zeros() {
    for zero in [0.0, -0.0] {
        let (codes, absmax) = pack(&[zero; 65], 64);
        assert_eq!((&codes, bits(&absmax)), (&vec![0x77; 33], vec![0, 0]));
        assert_eq!(bits(&unpack(&codes, &absmax, 64, 65)), [0; 65]);
    }
    // Other writers leave code 0 in such a block.
    assert!(unpack(&[0; 32], &[0.0], 64, 64).iter().all(|x| *x == 0.0));
    assert_eq!(pack(&[], 64), (vec![], vec![]));
}

#[test]
fn a_short_last_block_has_a_scale_of_its_own() {
    let mut values = noise(1, 129, 1.0);
    values[128] = -1e-3;
    let (codes, absmax) = pack(&values, 64);
    assert_eq!((codes[64], absmax[2]), (0x07, 1e-3), "code 0, and the code of 0 where nothing stands");
    assert_eq!(unpack(&codes, &absmax, 64, 129)[128].to_bits(), (-1e-3f32).to_bits());
}

#[test]
fn blocks_do_not_know_each_other() {
    let mut values = noise(4, 192, 1.0);
    values[64..128].iter_mut().for_each(|x| *x *= 1e6);
    let apart: Vec<f32> = values.chunks(64).flat_map(|block| round_trip(block, 64)).collect();
    assert_eq!(bits(&round_trip(&values, 64)), bits(&apart));
}

#[test]
fn what_is_not_finite_is_refused_with_its_place() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = [0.5; 70];
        values[66] = bad;
        let error = quantize(&values, 64, &mut [0; 35], &mut [0.0; 2]).unwrap_err();
        assert_eq!(error.to_string(), format!("value 66 is {bad}, and NF4 takes finite numbers only"));
        let error = dequantize(&[0; 35], &[1.0, bad], 64, &mut values).unwrap_err();
        assert_eq!(error.to_string(), format!("absmax 1 is {bad}, and NF4 takes finite numbers only"));
    }
}

#[test]
#[should_panic(expected = "sizes of an NF4 tensor")]
fn a_block_without_its_scale_is_a_mistake_of_the_caller() {
    let _ = dequantize(&[0; 33], &[1.0], 64, &mut [0.0; 65]);
}

/// Values within a power of two, from the smallest numbers to the largest; zeros and the power itself among them.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let scale = |(parts, exponent): (Vec<f32>, i32)| {
        parts.into_iter().map(|x| (f64::from(x) * 2f64.powi(exponent)) as f32).collect()
    };
    let part = prop_oneof![8 => -1.0f32..1.0, 1 => Just(0.0), 1 => Just(1.0), 1 => Just(-0.0)];
    (prop::collection::vec(part, 1..200), -149i32..127).prop_map(scale)
}

proptest! {
    #[test]
    fn each_value_gets_the_nearest_level_of_its_block(values in values(), which in 0usize..3) {
        let block = BLOCKS[which];
        let (codes, absmax) = pack(&values, block);
        for (b, part) in values.chunks(block).enumerate() {
            let max = part.iter().fold(0f32, |max, x| max.max(x.abs()));
            prop_assert_eq!(absmax[b].to_bits(), max.to_bits());
            let max = f64::from(max);
            for (i, &x) in part.iter().enumerate() {
                let far = |level: f32| (f64::from(x) - f64::from(level) * max).abs();
                let best = LEVELS.into_iter().map(far).fold(f64::INFINITY, f64::min);
                let got = far(LEVELS[code(&codes, b * block + i)]);
                // The borders are midpoints rounded to f32: off by up to 2^-25, which shifts both distances.
                prop_assert!(got <= best + 2f64.powi(-24) * max, "{} under {}: {} > {}", x, max, got, best);
            }
        }
    }

    #[test]
    fn packing_what_was_unpacked_changes_nothing(values in values(), which in 0usize..3) {
        let block = BLOCKS[which];
        let (codes, absmax) = pack(&values, block);
        let once = unpack(&codes, &absmax, block, values.len());
        let (again, same) = pack(&once, block);
        prop_assert_eq!(bits(&absmax), bits(&same));
        prop_assert_eq!(&unpack(&again, &same, block, values.len()), &once);
        // Under a scale of a few of the smallest numbers, several levels are one number.
        if absmax.iter().all(|&x| x == 0.0 || x >= f32::MIN_POSITIVE) {
            prop_assert_eq!(again, codes);
        }
    }
}

/// A tensor of the golden files as f32.
fn golden(file: &str, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(format!("{}/tests/golden/nf4/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let data = tensor.data();
    let halves = || data.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match tensor.dtype() {
        safetensors::Dtype::U8 => data.iter().map(|&b| f32::from(b)).collect(),
        safetensors::Dtype::BF16 => halves().map(|x| bf16::from_bits(x).to_f32()).collect(),
        safetensors::Dtype::F16 => halves().map(|x| f16::from_bits(x).to_f32()).collect(),
        _ => data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

fn golden_bytes(name: &str) -> Vec<u8> {
    golden("model.safetensors", name).into_iter().map(|x| x as u8).collect()
}

#[test]
fn bitsandbytes_packs_and_unpacks_alike() {
    for (name, block) in [("single", 64), ("wide", 128)] {
        let source = golden("expected.safetensors", &format!("{name}.source"));
        let want = golden_bytes(&format!("{name}.weight"));
        let mut scales = golden("model.safetensors", &format!("{name}.weight.absmax"));
        let (codes, absmax) = pack(&source, block);
        assert_eq!(codes, want, "{name}");
        assert_eq!(bits(&absmax), bits(&scales), "{name}");
        assert_eq!(bits(&golden("model.safetensors", &format!("{name}.weight.quant_map"))), bits(&LEVELS));
        let values = golden("expected.safetensors", &format!("{name}.values"));
        let mut got = unpack(&want, &scales, block, values.len());
        if name == "wide" {
            got = got.into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
        }
        assert_eq!(bits(&got), bits(&values), "{name}");
        scales[0] *= 1.01;
        assert_ne!(unpack(&want, &scales, block, values.len()), values, "the scales count");
    }
}

/// What `double_source` of the script makes.
fn double_source() -> Vec<f32> {
    let mut values: Vec<f32> = noise(2, 96 * 172, 1.0).iter().map(|x| x * 0.03125).collect();
    values.iter_mut().step_by(997).for_each(|x| *x *= 8.0);
    values.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

#[test]
fn bitsandbytes_packs_scales_alike_a_second_time() {
    let model = |part: &str| golden("model.safetensors", &format!("double.weight.{part}"));
    let (codes, absmax) = pack(&double_source(), 64);
    assert_eq!(codes, golden_bytes("double.weight"));
    assert_eq!(bits(&model("nested_quant_map")), bits(&absmax::map()));
    let ours = absmax::quantize(&absmax).unwrap();
    assert_eq!(ours.codes, golden_bytes("double.weight.absmax"));
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs();
    let nested = model("nested_absmax");
    assert!(nested.len() == 2 && ours.absmax.iter().zip(&nested).all(|(a, b)| near(*a, *b)));
    let json: serde_json::Value =
        serde_json::from_slice(&golden_bytes("double.weight.quant_state.bitsandbytes__nf4")).unwrap();
    let offset = json["nested_offset"].as_f64().unwrap() as f32;
    assert!(near(ours.offset, offset), "{} {offset}", ours.offset);
    // With its own numbers, to the bit.
    let theirs = absmax::Nested { codes: ours.codes, absmax: nested, offset };
    let scales = absmax::dequantize(&theirs, &absmax::map(), 256).unwrap();
    assert_eq!(bits(&scales), bits(&golden("expected.safetensors", "double.absmax")));
    let rows = unpack(&codes, &scales, 64, 96 * 172);
    let rows: Vec<f32> =
        rows.chunks(172).step_by(12).flatten().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(bits(&rows), bits(&golden("expected.safetensors", "double.values")));
}
