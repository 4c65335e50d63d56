"""Makes the golden fixtures of the dense architectures: tiny random models and what transformers computes for them in float32.

    pip install torch==2.15.0 transformers==5.23.0 safetensors numpy
    OMP_NUM_THREADS=1 python tests/golden/dense.py

Each case is a folder as in make.py, without sinks and experts: `config.json`, `model.safetensors` in bfloat16, `tokens.json`, and
`expected.safetensors` with `positions`, `logits` [P, vocab] and `hidden` [layers, P, hidden] in float32.

Norm weights, biases and the weights of query and key norms are randomised, since their usual first values change nothing. Prompts are
longer than the window and than the original context of scaled frequencies. The models are so small that a difference in any part shows.
"""

import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent

COMMON = {
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 64,
}

CASES = {
    # Frequencies scaled as in Llama 3.1, in the spelling of its files; no head_dim.
    "llama": COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "mlp_bias": False,
        "model_type": "llama",
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
            "rope_type": "llama3",
        },
        "rope_theta": 20.0,  # so that of four pairs one stays, two are on the ramp and one is divided
    },
    # All biases, the head tied to the embedding, the newer spelling, no base of the frequencies, one key/value head for each query head.
    "llama-tied": {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}
    | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "head_dim": 16,
        "mlp_bias": True,
        "model_type": "llama",
        "tie_word_embeddings": True,
    },
    "mistral": COMMON
    | {
        "architectures": ["MistralForCausalLM"],
        "head_dim": 16,
        "model_type": "mistral",
        "rope_theta": 1000000.0,
        "sliding_window": 8,
    },
    "qwen2": COMMON
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "max_window_layers": 1,
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "sliding_window": 8,
        "use_sliding_window": True,
    },
    "qwen3": COMMON
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "max_window_layers": 3,
        "model_type": "qwen3",
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32, "rope_type": "yarn"},
        "rope_theta": 1000.0,
        "sliding_window": None,
        "use_sliding_window": False,
    },
}


def weights(config: dict, g: torch.Generator) -> dict[str, torch.Tensor]:
    """Random tensors under the names of a checkpoint. Standard deviations keep every part's effect visible."""
    d, i, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim", d // heads)
    q, kv = heads * head, config.get("num_key_value_heads", heads) * head

    def normal(*shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * std + mean).to(torch.bfloat16)

    out = {
        "model.embed_tokens.weight": normal(config["vocab_size"], d, std=1.0),
        "model.norm.weight": normal(d, std=0.2, mean=1.0),
    }
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = normal(config["vocab_size"], d, std=0.3)
    qkv_bias = config["model_type"] == "qwen2" or config.get("attention_bias", False)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            out[p + norm + ".weight"] = normal(d, std=0.2, mean=1.0)
        for name, rows, cols in [("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)]:
            out[p + f"self_attn.{name}_proj.weight"] = normal(rows, cols, std=cols**-0.5)
            if qkv_bias and (name != "o" or config.get("attention_bias", False)):
                out[p + f"self_attn.{name}_proj.bias"] = normal(rows, std=0.5)
        if config["model_type"] == "qwen3":
            for name in ["q_norm", "k_norm"]:
                out[p + f"self_attn.{name}.weight"] = normal(head, std=0.3, mean=1.0)
        for name, rows, cols in [("gate", i, d), ("up", i, d), ("down", d, i)]:
            out[p + f"mlp.{name}_proj.weight"] = normal(rows, cols, std=cols**-0.5)
            if config.get("mlp_bias", False):
                out[p + f"mlp.{name}_proj.bias"] = normal(rows, std=0.5)
    return out


def make(name: str, config: dict, seed: int, length: int, positions: list[int]) -> None:
    g = torch.Generator().manual_seed(seed)
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = weights(config, g)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokens = torch.randint(0, config["vocab_size"], (length,), generator=g).tolist()
    (folder / "tokens.json").write_text(json.dumps(tokens) + "\n")

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    layers: list[torch.Tensor] = []
    for layer in model.eval().model.layers:
        layer.register_forward_hook(lambda _m, _i, out: layers.append((out if torch.is_tensor(out) else out[0])[0]))
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    at = torch.tensor(positions)
    expected = {
        "logits": logits[at].contiguous(),
        "hidden": torch.stack(layers)[:, at].contiguous(),
        "positions": at.int(),
    }
    metadata = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file(expected, folder / "expected.safetensors", metadata=metadata)
    print(f"{name}: logits up to {logits.abs().max():.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    edges = [0, 1, 2, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 80, 103]
    for seed, (name, config) in enumerate(CASES.items(), 21):
        make(name, config, seed, length=104, positions=edges)
