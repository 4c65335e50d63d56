"""Makes the golden fixture of OpenAI's own layout: a tiny random GPT-OSS under the names of `original/`, and what OpenAI's reference
implementation in PyTorch computes for it in float32. transformers has no part in it.

    pip install torch==2.15.0 safetensors numpy
    git clone https://github.com/openai/gpt-oss DIR && git -C DIR checkout 7b58334
    OMP_NUM_THREADS=1 python tests/golden/original.py DIR

gptoss-original/ holds `config.json` and two shards as OpenAI publishes them (row concat of queries, keys and values, MXFP4 experts, no
`model_type`), `tokens.json`, and `expected.safetensors` with `logits` [tokens, vocab]. Biases, sinks and router are large enough that
dropping one shows; the prompt is longer than the window, and the clamp of SwiGLU acts.
"""

import json
import pathlib
import sys

sys.path.insert(0, sys.argv[1])

import torch
from gpt_oss.torch import model as openai
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "gptoss-original"
CONFIG = {
    "num_hidden_layers": 3,
    "num_experts": 4,
    "experts_per_token": 2,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "swiglu_limit": 1.5,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 8,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}


def weights(g):
    """Random tensors under OpenAI's names."""
    c = CONFIG
    d, i, e, h = c["hidden_size"], c["intermediate_size"], c["num_experts"], c["head_dim"]
    q, kv = c["num_attention_heads"] * h, c["num_key_value_heads"] * h

    def normal(*shape, std, mean=0.0):
        return (torch.randn(*shape, generator=g) * std + mean).to(torch.bfloat16)

    def code(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=g, dtype=torch.int32).to(torch.uint8)

    out = {
        "embedding.weight": normal(c["vocab_size"], d, std=1.0),
        "norm.scale": normal(d, std=0.2, mean=1.0),
        "unembedding.weight": normal(c["vocab_size"], d, std=0.3),
    }
    for layer in range(c["num_hidden_layers"]):
        p = f"block.{layer}."
        out[p + "attn.norm.scale"] = normal(d, std=0.2, mean=1.0)
        out[p + "attn.qkv.weight"] = normal(q + 2 * kv, d, std=d**-0.5)
        out[p + "attn.qkv.bias"] = normal(q + 2 * kv, std=0.5)
        out[p + "attn.sinks"] = normal(c["num_attention_heads"], std=1.0)
        out[p + "attn.out.weight"] = normal(d, q, std=q**-0.5)
        out[p + "attn.out.bias"] = normal(d, std=0.5)
        out[p + "mlp.norm.scale"] = normal(d, std=0.2, mean=1.0)
        out[p + "mlp.gate.weight"] = normal(e, d, std=0.5)
        out[p + "mlp.gate.bias"] = normal(e, std=0.5)
        for name, rows, cols in [("mlp1", 2 * i, d), ("mlp2", d, i)]:
            out[p + f"mlp.{name}_weight.blocks"] = code(0, 255, e, rows, cols // 32, 16)
            out[p + f"mlp.{name}_weight.scales"] = code(121, 125, e, rows, cols // 32)
            out[p + f"mlp.{name}_bias"] = normal(e, rows, std=0.5)
    return out


def main():
    HERE.mkdir(exist_ok=True)
    g = torch.Generator().manual_seed(5)
    (HERE / "config.json").write_text(json.dumps(CONFIG, indent=4) + "\n")
    tensors = weights(g)
    names = list(tensors)
    half = len(names) // 2
    for i, part in enumerate([names[:half], names[half:]]):
        save_file({name: tensors[name] for name in part}, HERE / f"model--0000{i + 1}-of-00002.safetensors")
    tokens = torch.randint(0, CONFIG["vocab_size"], (40,), generator=g)
    (HERE / "tokens.json").write_text(json.dumps(tokens.tolist()) + "\n")

    model = openai.Transformer.from_checkpoint(str(HERE), device="cpu").float()
    largest = []
    swiglu = openai.swiglu

    def seen(x, alpha=1.702, limit=7.0):
        largest.append(x.abs().max().item())
        return swiglu(x, alpha, limit)

    openai.swiglu = seen
    with torch.no_grad():
        logits = model(tokens)
    assert max(largest) > CONFIG["swiglu_limit"] * 1.1, f"the SwiGLU clamp never acts: {largest}"
    save_file({"logits": logits.contiguous()}, HERE / "expected.safetensors")
    print(f"logits up to {logits.abs().max():.2f}, SwiGLU input {max(largest):.1f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
