"""Makes the golden fixtures of text encoders: two tiny random models, and the vectors of all tokens of some texts.

    pip install torch==2.15.0 transformers==5.23.0 safetensors numpy
    OMP_NUM_THREADS=1 python tests/golden/encoders.py

encoder-bert is a `BertModel` computed by transformers in float64. encoder-new has the architecture of gte-*-v1.5, which transformers
lacks; it is written down here a second time, in numpy and float64, with whole-matrix operations in place of the blocks of the Rust
code. Each folder holds `config.json`, `model.safetensors`, `tokens.json` (texts of several lengths) and `expected.safetensors` with
`hidden` [tokens of all texts, hidden_size].

All biases and norms are random, so that a dropped one shows. For the second model the spoiled forms that ports got wrong (GELU by
tanh, gate before up, no token type, a rope without NTK) are computed too, and must differ by more than the test's tolerance.
"""

import json
import math
import pathlib

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
LENGTHS = [1, 7, 40, 23]


def save(name, config, weights, texts, hidden):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokens.json").write_text(json.dumps(texts) + "\n")
    save_file({"hidden": hidden.astype(np.float32)}, folder / "expected.safetensors")


def texts(vocab, seed):
    rng = np.random.default_rng(seed)
    return [[int(t) for t in rng.integers(0, vocab, n)] for n in LENGTHS]


def bert():
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40, type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu",
        attn_implementation="eager",
    )
    torch.manual_seed(5)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.1 if "LayerNorm.weight" not in name else 0.2) + ("LayerNorm.weight" in name))
    weights = {name: p.detach().numpy().astype(np.float32) for name, p in model.named_parameters()}
    model = model.double()
    tokens = texts(60, 1)
    with torch.no_grad():
        hidden = [model(torch.tensor([t])).last_hidden_state[0].numpy() for t in tokens]
    fields = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    fields += "type_vocab_size layer_norm_eps hidden_act"
    written = {"architectures": ["BertModel"], "model_type": "bert"} | {f: getattr(config, f) for f in fields.split()}
    save("encoder-bert", written, weights, tokens, np.concatenate(hidden))


def erf(x):
    return np.vectorize(math.erf)(x)


def new_forward(config, w, tokens, tanh=False, gate_first=False, kind=True, ntk=True):
    h, heads = config["hidden_size"], config["num_attention_heads"]
    d, inner = h // heads, config["intermediate_size"]
    theta, s = config["rope_theta"], config["rope_scaling"]["factor"] if ntk else 1.0
    f = np.array([theta ** (-2 * i / d) * s ** (-2 * (i + 1) / d) for i in range(d // 2)])
    angle = np.arange(len(tokens))[:, None] * np.concatenate([f, f])[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return unit * w[name + ".weight"] + w[name + ".bias"]

    def turn(x):
        half = np.concatenate([-x[..., d // 2 :], x[..., : d // 2]], -1)
        return x * cos + half * sin

    def gelu(x):
        if tanh:
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))

    x = w["embeddings.word_embeddings.weight"][tokens]
    if kind:
        x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        qkv = x @ w[at + "attention.qkv_proj.weight"].T + w[at + "attention.qkv_proj.bias"]
        q, k, v = (part.reshape(-1, heads, d) for part in np.split(qkv, 3, -1))
        scores = np.einsum("qhd,khd->hqk", turn(q), turn(k)) / math.sqrt(d)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(-1, h)
        x = norm(x + mixed @ w[at + "attention.o_proj.weight"].T + w[at + "attention.o_proj.bias"], at + "attn_ln")
        up, gate = np.split(x @ w[at + "mlp.up_gate_proj.weight"].T, [inner], -1)
        if gate_first:
            up, gate = gate, up
        x = norm(x + (gelu(gate) * up) @ w[at + "mlp.down_proj.weight"].T + w[at + "mlp.down_proj.bias"], at + "mlp_ln")
    return x


def new():
    config = {
        "architectures": ["NewModel"], "model_type": "new", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 40, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "position_embedding_type": "rope", "rope_theta": 160000,
        "rope_scaling": {"type": "ntk", "factor": 2.0}, "layer_norm_type": "layer_norm", "pack_qkv": True,
        "logn_attention_scale": False,
    }
    h, inner = config["hidden_size"], config["intermediate_size"]
    rng = np.random.default_rng(9)
    w = {"embeddings.word_embeddings.weight": (60, h), "embeddings.token_type_embeddings.weight": (2, h)}
    norms = ["embeddings.LayerNorm"]
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        w |= {at + "attention.qkv_proj.weight": (3 * h, h), at + "attention.qkv_proj.bias": (3 * h,),
              at + "attention.o_proj.weight": (h, h), at + "attention.o_proj.bias": (h,),
              at + "mlp.up_gate_proj.weight": (2 * inner, h), at + "mlp.down_proj.weight": (h, inner),
              at + "mlp.down_proj.bias": (h,)}
        norms += [at + "attn_ln", at + "mlp_ln"]
    w = {name: rng.normal(size=shape) * 0.3 for name, shape in w.items()}
    for name in norms:
        w[name + ".weight"] = 1 + 0.2 * rng.normal(size=h)
        w[name + ".bias"] = 0.2 * rng.normal(size=h)
    w = {name: value.astype(np.float32) for name, value in w.items()}
    exact = {name: value.astype(np.float64) for name, value in w.items()}
    tokens = texts(60, 2)
    hidden = np.concatenate([new_forward(config, exact, t) for t in tokens])
    for spoiled in [{"tanh": True}, {"gate_first": True}, {"kind": False}, {"ntk": False}]:
        other = np.concatenate([new_forward(config, exact, t, **spoiled) for t in tokens])
        apart = np.abs(other - hidden).max()
        print(f"{spoiled}: {apart:.2e}")
        assert apart > 1e-4
    save("encoder-new", config, w, tokens, hidden)


bert()
new()
