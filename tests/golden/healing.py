"""Makes the golden fixture of a healing step: gradients of a whole student from torch's autograd through transformers, in float64.

    pip install torch==2.15.0 transformers==5.23.0 safetensors
    OMP_NUM_THREADS=1 python tests/golden/healing.py

healing/ holds a tiny GPT-OSS (`teacher`), the same with two layers of random latent attention, one of them with a rotated key that all
heads share (`student`), and `expected.safetensors`: for each phase its loss and the gradient of every tensor of the latent attention.
Prompts are longer than the window and than the original YaRN context. Losses are normalised over both prompts together.
"""

import json
import os
import pathlib
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
CODE = HERE.parent.parent / "src/stage/export"
FOLDER = HERE / "healing"
PROMPTS = [[(i * i * 7 + 3 * i) % 40 for i in range(40)], [(i * 11 + 5) % 40 for i in range(23)]]
HIDDEN, HEADS, KV_HEADS, D, EXPERTS, INNER, VOCAB, WINDOW = 16, 4, 2, 8, 4, 16, 40, 8
LATENT = [None, {"kv_lora_rank": 10, "rope_pairs": [0, 2]}, {"kv_lora_rank": 12, "rope_pairs": [0, 1, 1], "shared_rope": True}]

CONFIG = {
    "attention_bias": True,
    "attention_dropout": 0.0,
    "head_dim": D,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "max_position_embeddings": 256,
    "model_type": "gpt_oss",
    "num_attention_heads": HEADS,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": KV_HEADS,
    "num_local_experts": EXPERTS,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 16,
        "truncate": False,
    },
    "sliding_window": WINDOW,
    "swiglu_limit": 1.5,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}


def weights(g: torch.Generator) -> tuple[dict, dict]:
    """Tensors of teacher and student; all but the attention of latent layers are the same."""

    def normal(*shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * std + mean).to(torch.bfloat16)

    def linear(into: dict, name: str, rows: int, cols: int, bias: bool = True) -> None:
        into[name + ".weight"] = normal(rows, cols, std=cols**-0.5)
        if bias:
            into[name + ".bias"] = normal(rows, std=0.3)

    shared = {
        "model.embed_tokens.weight": normal(VOCAB, HIDDEN, std=1.0),
        "model.norm.weight": normal(HIDDEN, std=0.2, mean=1.0),
        "lm_head.weight": normal(VOCAB, HIDDEN, std=0.3),
    }
    teacher, student = {}, {}
    for i, latent in enumerate(LATENT):
        p = f"model.layers.{i}."
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            shared[p + norm + ".weight"] = normal(HIDDEN, std=0.2, mean=1.0)
        linear(shared, p + "mlp.router", EXPERTS, HIDDEN)
        shared[p + "mlp.experts.gate_up_proj"] = normal(EXPERTS, HIDDEN, 2 * INNER, std=HIDDEN**-0.5)
        shared[p + "mlp.experts.gate_up_proj_bias"] = normal(EXPERTS, 2 * INNER, std=0.3)
        shared[p + "mlp.experts.down_proj"] = normal(EXPERTS, INNER, HIDDEN, std=INNER**-0.5)
        shared[p + "mlp.experts.down_proj_bias"] = normal(EXPERTS, HIDDEN, std=0.3)
        p += "self_attn."
        for into in [teacher] + ([] if latent else [student]):
            g.manual_seed(i)
            linear(into, p + "q_proj", HEADS * D, HIDDEN)
            linear(into, p + "k_proj", KV_HEADS * D, HIDDEN)
            linear(into, p + "v_proj", KV_HEADS * D, HIDDEN)
            linear(into, p + "o_proj", HIDDEN, HEADS * D)
            into[p + "sinks"] = normal(HEADS, std=1.0)
        if latent:
            rope, joint = 2 * len(latent["rope_pairs"]), latent.get("shared_rope", False)
            nope = D if joint else D - rope
            linear(student, p + "q_proj", HEADS * (nope + rope), HIDDEN)
            linear(student, p + "k_rope_proj", (1 if joint else KV_HEADS) * rope, HIDDEN)
            linear(student, p + "kv_a_proj", latent["kv_lora_rank"], HIDDEN)
            linear(student, p + "kv_b_proj", KV_HEADS * (nope + D), latent["kv_lora_rank"], bias=False)
            linear(student, p + "o_proj", HIDDEN, HEADS * D)
            student[p + "sinks"] = normal(HEADS, std=1.0)
    return shared | teacher, shared | student


def write(name: str, config: dict, tensors: dict) -> None:
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, folder / "model.safetensors", metadata={"format": "pt"})


def load(name: str, custom: bool):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(FOLDER / name, folder, dirs_exist_ok=True)
        if custom:
            for file in CODE.glob("*_gpt_oss_mla.py"):
                shutil.copy(file, folder)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=custom, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
        )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def attend(model, index: int, x: torch.Tensor) -> torch.Tensor:
    """What the attention of a layer gives for the residual stream x [1, t, hidden]."""
    layer, t = model.model.layers[index], x.shape[1]
    positions = torch.arange(t)[None]
    distance = positions.T - positions
    hidden = distance < 0
    if CONFIG["layer_types"][index] == "sliding_attention":
        hidden |= distance >= WINDOW
    mask = torch.zeros(1, 1, t, t, dtype=x.dtype).masked_fill(hidden, torch.finfo(x.dtype).min)
    return layer.self_attn(
        layer.input_layernorm(x), position_embeddings=model.model.rotary_emb(x, positions), attention_mask=mask
    )[0]


def finish(model, index: int, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    layer, x = model.model.layers[index], x + attended
    y = layer.mlp(layer.post_attention_layernorm(x))
    return x + (y[0] if isinstance(y, tuple) else y)


def layerwise(student, teacher, own: bool) -> torch.Tensor:
    latent = [i for i, entry in enumerate(LATENT) if entry]
    tokens, total = sum(map(len, PROMPTS)), 0.0
    for prompt in PROMPTS:
        taught = learnt = teacher.model.embed_tokens(torch.tensor([prompt]))
        for i in range(len(LATENT)):
            target = attend(teacher, i, taught).detach()
            attended = attend(student, i, learnt if own else taught)
            if i in latent:
                error = (attended - target).square().sum() / target.square().sum()
                total = total + error * len(prompt) / tokens / len(latent)
            learnt = finish(student, i, learnt, attended).detach()
            taught = finish(teacher, i, taught, target).detach()
    return total


def kl(student, teacher) -> torch.Tensor:
    total, predictions = 0.0, sum(len(prompt) - 1 for prompt in PROMPTS)
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        log_p, log_q = (model(ids, use_cache=False).logits[0, :-1].log_softmax(-1) for model in (teacher, student))
        total = total + (log_p.exp().detach() * (log_p.detach() - log_q)).sum() / predictions
    return total


def main() -> None:
    teacher_weights, student_weights = weights(torch.Generator().manual_seed(3))
    write("teacher", CONFIG, teacher_weights)
    write("student", CONFIG | {"model_type": "gpt_oss_mla", "mla": LATENT,
        "auto_map": {"AutoConfig": "configuration_gpt_oss_mla.GptOssMlaConfig",
            "AutoModelForCausalLM": "modeling_gpt_oss_mla.GptOssMlaForCausalLM"}}, student_weights)
    teacher, student = load("teacher", False), load("student", True)
    trained = {
        name: parameter for name, parameter in student.named_parameters()
        if any(latent and name.startswith(f"model.layers.{i}.self_attn.") for i, latent in enumerate(LATENT))
    }
    expected = {}
    for phase, loss in [
        ("layerwise", layerwise(student, teacher, own=False)),
        ("self-fed", layerwise(student, teacher, own=True)),
        ("kl", kl(student, teacher)),
    ]:
        gradients = torch.autograd.grad(loss, list(trained.values()))
        expected[phase] = loss.detach().reshape(1).float()
        expected |= {f"{phase}/{name}": gradient.float().contiguous() for name, gradient in zip(trained, gradients)}
        print(f"{phase}: {loss.item():.6f}")
    save_file(expected, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    main()
