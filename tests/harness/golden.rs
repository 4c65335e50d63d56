//! The golden fixtures of `tests/golden/make.py` and `dense.py`: a checkpoint that a test may spoil, and what transformers computed for it.

use std::{collections::BTreeMap, fs, path::Path};

use half::bf16;
use mla_run::artifact::Files;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// One tensor as it lies in a file.
#[derive(Clone)]
pub(crate) struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A tiny checkpoint with its prompt. Change `config` and the weights at will before [`Golden::write`].
pub(crate) struct Golden {
    pub(crate) config: Value,
    pub(crate) tokens: Vec<u32>,
    pub(crate) expected: Expected,
    weights: BTreeMap<String, Stored>,
}

/// What transformers computed in float32, at some positions of the prompt.
pub(crate) struct Expected {
    pub(crate) positions: Vec<usize>,
    /// `[positions][vocab]`.
    pub(crate) logits: Vec<Vec<f32>>,
    /// `[layers][positions][hidden]`: the residual stream after each layer.
    pub(crate) hidden: Vec<Vec<Vec<f32>>>,
    /// `[layers][heads][positions]`: the share of attention that the sink takes; empty where there are none.
    pub(crate) sink_mass: Vec<Vec<Vec<f32>>>,
    /// `[layers][positions][top_k]`: the chosen experts, best first; empty where there are none.
    pub(crate) experts: Vec<Vec<Vec<u32>>>,
}

impl Golden {
    /// Reads `tests/golden/<name>`.
    pub(crate) fn load(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let json = |file: &str| fs::read(dir.join(file)).unwrap();
        Self {
            config: serde_json::from_slice(&json("config.json")).unwrap(),
            tokens: serde_json::from_slice(&json("tokens.json")).unwrap(),
            expected: Expected::read(&read_tensors(&dir.join("expected.safetensors"))),
            weights: read_tensors(&dir.join("model.safetensors")),
        }
    }

    /// Writes the checkpoint's files.
    pub(crate) fn write(&self, dir: &Path) -> Files {
        let weights = safetensors::serialize(self.weights.iter().map(|(name, t)| (name, t.view())), None);
        let files = [
            ("config.json", serde_json::to_vec(&self.config).unwrap()),
            ("model.safetensors", weights.unwrap()),
        ];
        files
            .into_iter()
            .map(|(name, bytes)| {
                fs::write(dir.join(name), bytes).unwrap();
                (name.to_owned(), dir.join(name))
            })
            .collect()
    }

    /// Changes every bfloat16 value of the tensors whose names end in `suffix`; at least one must.
    pub(crate) fn edit(&mut self, suffix: &str, change: impl Fn(f32) -> f32) {
        for t in self.matching(suffix) {
            assert_eq!(t.dtype, Dtype::BF16);
            for pair in t.bytes.chunks_exact_mut(2) {
                let value = bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
                pair.copy_from_slice(&bf16::from_f32(change(value)).to_le_bytes());
            }
        }
    }

    /// The values of a bfloat16 tensor.
    pub(crate) fn bf16s(&self, name: &str) -> Vec<f32> {
        let t = &self.weights[name];
        assert_eq!(t.dtype, Dtype::BF16);
        t.bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect()
    }

    /// Sets a tensor to float32 values.
    pub(crate) fn put_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.weights.insert(name.to_owned(), Stored { dtype: Dtype::F32, shape: shape.to_vec(), bytes });
    }

    /// Takes a linear map out, weight and bias.
    pub(crate) fn remove(&mut self, map: &str) {
        for part in ["weight", "bias"] {
            assert!(self.weights.remove(&format!("{map}.{part}")).is_some(), "{map} has no {part}");
        }
    }

    /// Exchanges the tensors whose names end so.
    pub(crate) fn swap(&mut self, one: &str, other: &str) {
        let name = |suffix: &str| self.weights.keys().find(|name| name.ends_with(suffix)).unwrap().clone();
        let (one, other) = (name(one), name(other));
        let (a, b) = (self.weights[&one].clone(), self.weights[&other].clone());
        self.weights.extend([(one, b), (other, a)]);
    }

    /// Changes every byte of the U8 tensors whose names end in `suffix`; at least one must.
    pub(crate) fn edit_bytes(&mut self, suffix: &str, change: impl Fn(u8) -> u8) {
        for t in self.matching(suffix) {
            assert_eq!(t.dtype, Dtype::U8);
            t.bytes.iter_mut().for_each(|byte| *byte = change(*byte));
        }
    }

    /// Permutes an axis of the tensors whose names end in `suffix`: new index `i` gets what was at `from(i, length)`.
    pub(crate) fn permute(&mut self, suffix: &str, axis: usize, from: impl Fn(usize, usize) -> usize) {
        for t in self.matching(suffix) {
            let length = t.shape[axis];
            let outer: usize = t.shape[..axis].iter().product();
            let inner = t.bytes.len() / (outer * length);
            let old = t.bytes.clone();
            for o in 0..outer {
                for i in 0..length {
                    let (to, at) = ((o * length + i) * inner, (o * length + from(i, length)) * inner);
                    t.bytes[to..to + inner].copy_from_slice(&old[at..at + inner]);
                }
            }
        }
    }

    /// The rope parameters, in whichever spelling the config has them.
    pub(crate) fn rope(&mut self) -> &mut Value {
        let key = if self.config.get("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
        &mut self.config[key]
    }

    fn matching(&mut self, suffix: &str) -> Vec<&mut Stored> {
        let found: Vec<_> =
            self.weights.iter_mut().filter(|(name, _)| name.ends_with(suffix)).map(|(_, t)| t).collect();
        assert!(!found.is_empty(), "no tensor ends in `{suffix}`");
        found
    }
}

impl Expected {
    fn read(tensors: &BTreeMap<String, Stored>) -> Self {
        let positions = tensors["positions"].ints();
        let rows = |name: &str| nested(&tensors[name].floats(), &tensors[name].shape);
        Self {
            logits: chunks(&tensors["logits"].floats(), tensors["logits"].shape[1]),
            hidden: rows("hidden"),
            sink_mass: if tensors.contains_key("sink_mass") { rows("sink_mass") } else { Vec::new() },
            experts: tensors.get("experts").map_or_else(Vec::new, |t| nested(&t.ints(), &t.shape)),
            positions: positions.iter().map(|&p| p as usize).collect(),
        }
    }
}

impl Stored {
    fn view(&self) -> TensorView<'_> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes).unwrap()
    }
    fn words<T>(&self, dtype: Dtype, read: impl Fn([u8; 4]) -> T) -> Vec<T> {
        assert_eq!(self.dtype, dtype);
        self.bytes.chunks_exact(4).map(|b| read([b[0], b[1], b[2], b[3]])).collect()
    }
    fn floats(&self) -> Vec<f32> {
        self.words(Dtype::F32, f32::from_le_bytes)
    }
    fn ints(&self) -> Vec<u32> {
        self.words(Dtype::I32, u32::from_le_bytes)
    }
}

fn chunks<T: Clone>(flat: &[T], width: usize) -> Vec<Vec<T>> {
    flat.chunks_exact(width).map(<[T]>::to_vec).collect()
}

fn nested<T: Clone>(flat: &[T], shape: &[usize]) -> Vec<Vec<Vec<T>>> {
    flat.chunks_exact(shape[1] * shape[2]).map(|layer| chunks(layer, shape[2])).collect()
}

fn read_tensors(path: &Path) -> BTreeMap<String, Stored> {
    let bytes = fs::read(path).unwrap();
    let stored =
        |t: TensorView<'_>| Stored { dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() };
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.into_iter().map(|(name, t)| (name, stored(t))).collect()
}
