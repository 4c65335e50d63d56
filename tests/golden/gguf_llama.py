"""Makes the golden fixtures of GGUF files: what the `gguf` package and transformers read from them.

    pip install torch==2.15.0 transformers==5.23.0 gguf==0.19.0 tokenizers==0.23.3 safetensors numpy
    OMP_NUM_THREADS=1 python tests/golden/gguf_llama.py

gguf/blocks.gguf        a tensor [2, 256 or 512] for each type of block, random; the k-quants, which the package cannot make, from random
                        bytes with small scales. gguf/blocks.safetensors: their values as `gguf.dequantize` has them, float32.
gguf/llama.gguf         a tiny Llama under llama.cpp's names, queries and keys permuted as its converter does, several types of blocks,
                        Llama 3's divisors of the frequencies, an untied head, and a byte-level BPE of 320 tokens.
gguf/tied.gguf          another without head and divisors, in F16, F32 and BF16, with linear scaling.
gguf/expected.safetensors   `llama.logits`, `tied.logits` [tokens, vocab], and `*.q_proj`, `*.k_proj` of layer 1 as transformers has them,
                        which reads the same files by itself (it knows no scaling of the frequencies there, so that is set by hand).
gguf/tokens.json        the prompt.
gguf/tokenizer.json     ids of texts, for each name of a pre-tokenizer that is known, by the `tokenizers` package with what the families'
                        own tokenizer.json have before the merges.
"""

import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent / "gguf"
VOCAB, HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 320, 64, 96, 4, 2, 2
HEAD = 16  # of a head, so that 4 * 16 = 64
THETA, CONTEXT = 500000.0, 131072


def packed(values, kind):
    return gguf.quantize(values.astype(np.float32), kind)


def k_quant(rng, kind, rows, width):
    """Random blocks: any codes, scales that keep values near 1."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows * width // block, size), dtype=np.uint8)
    halves = {Q.Q2_K: [80, 82], Q.Q3_K: [108], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}[kind]
    for at in halves:
        scale = rng.uniform(0.001, 0.01, len(data)).astype(np.float16)
        data[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    return data.reshape(rows, -1)


def blocks(rng):
    writer = gguf.GGUFWriter(HERE / "blocks.gguf", "llama")
    expected = {}
    for kind in [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K]:
        width = 512 if kind.name.endswith("_K") else 64
        if kind.name.endswith("_K"):
            data = k_quant(rng, kind, 2, width)
        else:
            data = packed(rng.standard_normal((2, width)), kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = gguf.dequantize(data, kind).astype(np.float32).reshape(2, width)
    close(writer)
    save_file(expected, HERE / "blocks.safetensors")


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(w, heads):
    """What llama.cpp's converter does to the rows of queries and keys."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def divisors(factor):
    """Llama 3.1's, as its paper's code has them."""
    freqs = 1.0 / THETA ** (np.arange(0, HEAD, 2, dtype=np.float64) / HEAD)
    out = []
    for f in freqs:
        length = 2 * np.pi / f
        smooth = (8192 / length - 1.0) / 3.0
        out.append(1.0 if length < 8192 / 4 else factor if length > 8192 else 1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


def llama(rng, name, tokenizer, tied):
    writer = gguf.GGUFWriter(HERE / f"{name}.gguf", "llama")
    writer.add_name(name)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    if tied:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)
    add_tokenizer(writer, tokenizer)

    def add(name, shape, kind, std, mean=0.0, heads=None):
        w = rng.standard_normal(shape) * std + mean
        writer.add_tensor(name, packed(interleaved(w, heads) if heads else w, kind), raw_dtype=kind)

    kinds = [Q.F16, Q.BF16] if tied else [Q.Q8_0, Q.Q4_0, Q.Q5_1, Q.F16, Q.Q4_1, Q.BF16, Q.Q5_0]
    at = 0

    def kind():
        nonlocal at
        at += 1
        return kinds[at % len(kinds)]

    add("token_embd.weight", (VOCAB, HIDDEN), kind(), 1.0)
    add("output_norm.weight", (HIDDEN,), Q.F32, 0.2, 1.0)
    if not tied:
        add("output.weight", (VOCAB, HIDDEN), kind(), 0.3)
        writer.add_tensor("rope_freqs.weight", divisors(8.0))
    for layer in range(LAYERS):
        p = f"blk.{layer}."
        for norm in ["attn_norm", "ffn_norm"]:
            add(p + norm + ".weight", (HIDDEN,), Q.F32, 0.2, 1.0)
        for part, rows, width, heads in [
            ("attn_q", HEADS * HEAD, HIDDEN, HEADS),
            ("attn_k", KV_HEADS * HEAD, HIDDEN, KV_HEADS),
            ("attn_v", KV_HEADS * HEAD, HIDDEN, None),
            ("attn_output", HIDDEN, HEADS * HEAD, None),
            ("ffn_gate", INNER, HIDDEN, None),
            ("ffn_up", INNER, HIDDEN, None),
            ("ffn_down", HIDDEN, INNER, None),
        ]:
            std = (2.0 if heads else 1.0) * width**-0.5
            add(p + part + ".weight", (rows, width), kind(), std, heads=heads)
    close(writer)


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def before_merges(pre):
    """Normaliser and pre-tokenizer of the published tokenizer.json of GPT-2, SmolLM2, Llama 3 and Qwen2, and whether words that are tokens
    are taken whole."""
    level = lambda regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    split = lambda regex: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), level(False)])
    return {
        "gpt-2": (None, level(True), False),
        "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level(True)]), False),
        "llama-bpe": (None, split(LLAMA3), True),
        "qwen2": (normalizers.NFC(), split(LLAMA3.replace("{1,3}", "")), False),
    }[pre]


TEXT = """The 12345 quick brown foxes jumped over 67 lazy dogs, didn't they? WE'LL see: they've 890123 of them.
    Indented lines, tabs\tand   runs of blanks   \n\n\nfollow; caf\u00e9s, na\u00efve e\u0301lan, \u4f60\u597d\u4e16\u754c, \U0001f600!! 3.14159 ... (end)\r\n"""
TEXTS = [TEXT, "", " ", "a", "  two  blanks  ", "I'LL I'll", "x" * 40, "2024-06-01T12:34:56", "<|end|> is text", "e\u0301 \u00e9"]


def make_tokenizer():
    """A byte-level BPE of 320 tokens, four of them special or unused."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - 4, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda x: x[1])]
    tokens += ["<|begin|>", "<|end|>", "<|user|>", "[PAD319]"]
    assert len(tokens) == VOCAB, len(tokens)
    # Normal ones, two control tokens, one of a user's, one that fills up.
    kinds = [1] * (VOCAB - 4) + [3, 3, 4, 5]
    return tokens, kinds, [" ".join(pair) for pair in model["merges"]]


def add_tokenizer(writer, tokenizer):
    tokens, kinds, merges = tokenizer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(VOCAB - 4)
    writer.add_eos_token_id(VOCAB - 3)
    writer.add_chat_template("{{ messages }}")


def ids(tokenizer):
    tokens, _, merges = tokenizer
    out = {}
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"]:
        normaliser, pre_tokenizer, whole = before_merges(pre)
        vocab = {token: i for i, token in enumerate(tokens[:-1])}
        made = Tokenizer(models.BPE(vocab, [tuple(m.split(" ")) for m in merges], ignore_merges=whole))
        made.pre_tokenizer = pre_tokenizer
        if normaliser is not None:
            made.normalizer = normaliser
        made.decoder = decoders.ByteLevel()
        out[pre] = [made.encode(text).ids for text in TEXTS]
    assert len({json.dumps(x) for x in out.values()}) == 4, "the texts tell the families apart"
    return {"texts": TEXTS, "ids": out}


def main():
    HERE.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    blocks(rng)
    tokenizer = make_tokenizer()
    (HERE / "tokenizer.json").write_text(json.dumps(ids(tokenizer)) + "\n")
    tokens = rng.integers(0, VOCAB, 48).tolist()
    (HERE / "tokens.json").write_text(json.dumps(tokens) + "\n")
    expected = {}
    for name, scaling in [
        ("llama", {"rope_type": "llama3", "rope_theta": THETA, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192}),
        ("tied", {"rope_type": "linear", "rope_theta": THETA, "factor": 4.0}),
    ]:
        llama(rng, name, tokenizer, tied=name == "tied")
        model = AutoModelForCausalLM.from_pretrained(
            HERE, gguf_file=f"{name}.gguf", dtype=torch.float32, attn_implementation="eager", rope_parameters=scaling
        ).eval()
        assert model.config.rope_parameters["rope_type"] == scaling["rope_type"], model.config
        with torch.no_grad():
            expected[f"{name}.logits"] = model(torch.tensor([tokens])).logits[0, ::4].numpy().copy()
        attention = model.model.layers[1].self_attn
        for part in ["q_proj", "k_proj"]:
            expected[f"{name}.{part}"] = getattr(attention, part).weight.detach().numpy().copy()
        print(name, "logits up to", np.abs(expected[f"{name}.logits"]).max(), "tied", model.config.tie_word_embeddings)
    save_file(expected, HERE / "expected.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
