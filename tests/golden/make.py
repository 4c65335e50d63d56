"""Makes the golden fixtures: tiny random GPT-OSS models and what transformers computes for them in float32.

    pip install torch==2.15.0 transformers==5.23.0 accelerate==1.15.0 safetensors numpy
    OMP_NUM_THREADS=1 python tests/golden/make.py

Each case is a folder: `config.json` and `model.safetensors` as a user would have them, `tokens.json` with the prompt, and
`expected.safetensors` with, at the positions of `positions`:

    logits       [P, vocab]            float32
    hidden       [layers, P, hidden]   float32, the residual stream after each layer, before the final norm
    sink_mass    [layers, heads, P]    float32, 1 - sum of the attention row
    experts      [layers, P, top_k]    int32, the chosen experts, best first

Biases, sinks and router are randomised: the library's own initialisation leaves biases at zero and sinks tiny, and then a
dropped one changes nothing. Prompts are longer than the window and than the original YaRN context. Routing is
discontinuous, so a seed is used only when every choice is clear by a margin. The clamp of SwiGLU must act.
"""

import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import save_file
from transformers import GptOssForCausalLM

HERE = pathlib.Path(__file__).parent
ROUTER_MARGIN = 5e-4

COMMON = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "experts_per_token": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "model_type": "gpt_oss",
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "vocab_size": 96,
}

# 8 query heads on 2 key/value heads, dense bfloat16 experts (transposed), the newer spelling of the rope parameters.
DENSE = COMMON | {
    "dtype": "bfloat16",
    "intermediate_size": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 32,
        "truncate": False,
    },
    "sliding_window": 8,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 1.5,
}

# 8 query heads on 4 key/value heads, MXFP4 experts, the spelling of the published checkpoints, no `layer_types`.
MXFP4 = COMMON | {
    "initial_context_length": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4",
    },
    "rope_scaling": {
        "beta_fast": 8.0,
        "beta_slow": 1.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 16,
    "swiglu_limit": 7.0,
    "torch_dtype": "bfloat16",
}


def weights(config: dict, g: torch.Generator) -> dict[str, torch.Tensor]:
    """Random tensors under the names of a checkpoint. Standard deviations keep every part's effect visible."""
    d, i, e = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    q, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    mxfp4 = "quantization_config" in config

    def normal(*shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * std + mean).to(torch.bfloat16)

    def code(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=g, dtype=torch.int32).to(torch.uint8)

    out = {
        "model.embed_tokens.weight": normal(config["vocab_size"], d, std=1.0),
        "model.norm.weight": normal(d, std=0.2, mean=1.0),
        "lm_head.weight": normal(config["vocab_size"], d, std=0.3),
    }
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            out[p + norm + ".weight"] = normal(d, std=0.2, mean=1.0)
        for name, rows, cols in [("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)]:
            out[p + f"self_attn.{name}_proj.weight"] = normal(rows, cols, std=cols**-0.5)
            out[p + f"self_attn.{name}_proj.bias"] = normal(rows, std=0.5)
        out[p + "self_attn.sinks"] = normal(config["num_attention_heads"], std=1.0)
        out[p + "mlp.router.weight"] = normal(e, d, std=0.5)
        out[p + "mlp.router.bias"] = normal(e, std=0.5)
        for name, rows, cols in [("gate_up", 2 * i, d), ("down", d, i)]:
            t = p + f"mlp.experts.{name}_proj"
            if mxfp4:
                out[t + "_blocks"] = code(0, 255, e, rows, cols // 32, 16)
                out[t + "_scales"] = code(121, 125, e, rows, cols // 32)
            else:
                out[t] = normal(e, cols, rows, std=cols**-0.5)
            out[t + "_bias"] = normal(e, rows, std=0.5)
    return out


def run(folder: pathlib.Path, tokens: list[int]):
    """The forward pass of transformers on CPU in float32, and the largest value that went into a SwiGLU."""
    model = GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.set_experts_implementation("eager")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    layers: list[torch.Tensor] = []
    largest: list[float] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: layers.append(out[0]))
        gate = layer.mlp.experts._apply_gate

        def seen(x: torch.Tensor, gate=gate) -> torch.Tensor:
            largest.append(x.abs().max().item())
            return gate(x)

        layer.mlp.experts._apply_gate = seen
    with torch.no_grad():
        out = model(torch.tensor([tokens]), output_attentions=True, output_router_logits=True, use_cache=False)
    return out, torch.stack(layers), max(largest)


def make(name: str, config: dict, seed: int, length: int, positions: list[int]) -> None:
    g = torch.Generator().manual_seed(seed)
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(weights(config, g), folder / "model.safetensors", metadata={"format": "pt"})
    tokens = torch.randint(0, config["vocab_size"], (length,), generator=g).tolist()
    (folder / "tokens.json").write_text(json.dumps(tokens) + "\n")

    out, hidden, largest = run(folder, tokens)
    top = [r.topk(3, dim=-1) for r in out.router_logits]
    margin = min((t.values[:, :2] - t.values[:, 1:]).min().item() for t in top)
    assert margin > ROUTER_MARGIN, f"{name}: seed {seed} has a router margin of only {margin:.1e}; take another seed"
    assert largest > config["swiglu_limit"] * 1.1, f"{name}: the SwiGLU clamp never acts ({largest:.2f})"

    at = torch.tensor(positions)
    mass = torch.stack([1.0 - a[0].double().sum(-1) for a in out.attentions]).float()
    save_file(
        {
            "logits": out.logits[0, at].contiguous(),
            "hidden": hidden[:, at].contiguous(),
            "sink_mass": mass[:, :, at].contiguous(),
            "experts": torch.stack([t.indices[at, :2].int() for t in top]).contiguous(),
            "positions": at.int(),
        },
        folder / "expected.safetensors",
        metadata={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    print(f"{name}: seed {seed}, logits up to {out.logits.abs().max():.2f}, router margin {margin:.1e}, SwiGLU input {largest:.1f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    edges = [0, 1, 2, 6, 7, 8, 9, 14, 15, 16, 17, 30, 31, 32, 33, 47, 62, 63, 64, 65, 80, 95, 102, 103]
    make("gptoss-dense", DENSE, seed=11, length=104, positions=edges)
    make("gptoss-mxfp4", MXFP4, seed=14, length=136, positions=edges + [120, 135])
