"""Makes the golden fixture of NF4 weights: tensors that bitsandbytes packed, in the layout that it writes to safetensors.

    pip install torch==2.15.0 bitsandbytes==0.50.2 safetensors numpy
    OMP_NUM_THREADS=1 python tests/golden/nf4.py

nf4/model.safetensors holds three weights with their quantisation states:

- `single`  F32 [5, 77], absmax in F32: every code, every border between two codes with its neighbours, a block of zeros, noise,
            and a last block of one value in half a byte;
- `double`  BF16 [96, 172], absmax quantised to eight bits over two nested blocks;
- `wide`    F16 [4, 100], absmax in F32 over blocks of 128.

nf4/expected.safetensors holds what went in (`NAME.source`; that of `double` is `double_source()`, which the Rust test repeats) and what
bitsandbytes makes of the packed form (`NAME.values`; of `double` every twelfth row, and all `double.absmax`).
"""

import pathlib

import bitsandbytes.functional as bnb
import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "nf4"
MASK = (1 << 64) - 1


def noise(seed, n):
    """The noise of the Rust kernel tests: xorshift, 24 bits, in [-1, 1)."""
    state = (seed * 0x9E3779B97F4A7C15 & MASK) | 1
    out = np.empty(n, np.float32)
    for i in range(n):
        state ^= state << 13 & MASK
        state ^= state >> 7
        state ^= state << 17 & MASK
        out[i] = np.float32(state >> 40) / np.float32(1 << 23) - np.float32(1)
    return out


def single_source():
    codes = bnb.get_4bit_type("nf4", device="cpu").numpy()
    borders = (codes[:-1] + codes[1:]) / np.float32(2)
    around = [np.nextafter(borders, np.float32(side)) for side in (-2, 2)]
    special = np.concatenate([codes, borders, *around, np.zeros(3, np.float32)])
    values = np.concatenate([special, np.zeros(64, np.float32), noise(1, 5 * 77 - 128) * np.float32(0.05)])
    return torch.from_numpy(values.reshape(5, 77))


def double_source():
    values = noise(2, 96 * 172) * np.float32(0.03125)
    values[::997] *= np.float32(8)
    return torch.from_numpy(values.reshape(96, 172)).to(torch.bfloat16)


def main():
    HERE.mkdir(exist_ok=True)
    wide = torch.from_numpy(noise(3, 400).reshape(4, 100)).to(torch.float16)
    cases = {
        "single": (single_source(), False, 64),
        "double": (double_source(), True, 64),
        "wide": (wide, False, 128),
    }
    model, expected = {}, {"single.source": cases["single"][0], "wide.source": wide}
    for name, (source, nested, block) in cases.items():
        packed, state = bnb.quantize_4bit(source, blocksize=block, compress_statistics=nested, quant_type="nf4")
        model[f"{name}.weight"] = packed
        model |= {f"{name}.weight.{key}": part.clone() for key, part in state.as_dict(packed=True).items()}
        values = bnb.dequantize_4bit(packed, state)
        assert values.dtype == source.dtype and values.shape == source.shape
        expected[f"{name}.values"] = values[::12].clone() if nested else values
        if nested:
            expected["double.absmax"] = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    save_file(model, HERE / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, HERE / "expected.safetensors")
    (HERE / "config.json").write_text("{}\n")


if __name__ == "__main__":
    main()
