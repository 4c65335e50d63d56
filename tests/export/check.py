"""Loads an exported bundle with transformers and compares it with the logits that mla-run computed. See check.sh.

    python tests/export/check.py BUNDLE [TOLERANCE]

Checks, all in float32 on the CPU:
 1. every tensor of the bundle is used and none is missing;
 2. logits of the prompt in `check.safetensors`, largest absolute difference;
 3. the same prompt in two halves, the second one token at a time from the cache;
 4. greedy generation with a cache gives the tokens of generation without;
 5. two prompts of unequal length in one left-padded batch give what each gives alone;
 6. the cache holds as many elements as `conversion_report.json` says.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def report(what: str, difference: float, tolerance: float) -> bool:
    ok = difference < tolerance
    print(f"{'ok  ' if ok else 'FAIL'} {what}: largest difference {difference:.2e} (allowed {tolerance:.0e})")
    return ok


def expect(what: str, ok: bool, detail: object = "") -> bool:
    print(f"{'ok  ' if ok else 'FAIL'} {what}{'' if ok else f': {detail}'}")
    return ok


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def stepwise(model, ids: torch.Tensor):
    """Logits of all positions: the first half at once, the rest token by token; and the cache."""
    half = ids.shape[1] // 2
    out = model(ids[:, :half], use_cache=True)
    logits, cache = [out.logits], out.past_key_values
    for t in range(half, ids.shape[1]):
        out = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, dim=1), cache


def padded(model, a: torch.Tensor, b: torch.Tensor, token: torch.Tensor) -> float:
    """Two prompts (`b` the shorter) in one batch and alone: largest difference after them, and after one more token from the cache."""
    gap = a.shape[1] - b.shape[1]
    ids = torch.cat([a, torch.nn.functional.pad(b, (gap, 0))])
    mask = torch.ones_like(ids)
    mask[1, :gap] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    both = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
    more = model(
        token.expand(2, 1),
        attention_mask=torch.nn.functional.pad(mask, (0, 1), value=1),
        position_ids=positions[:, -1:] + 1,
        past_key_values=both.past_key_values,
        use_cache=True,
    )
    alone = [model(torch.cat([x, token], dim=1), use_cache=False).logits[0, -2:] for x in (a, b)]
    return largest(torch.stack([both.logits[:, -1], more.logits[:, -1]], dim=1), torch.stack(alone))


def cached_elements(cache, layer: int, tokens: int) -> float:
    entry = cache.layers[layer]
    return (entry.keys.numel() + entry.values.numel()) / tokens


@torch.no_grad()
def main(bundle: pathlib.Path, tolerance: float) -> bool:
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    model, info = AutoModelForCausalLM.from_pretrained(
        bundle, trust_remote_code=True, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model.eval()
    model.set_experts_implementation("eager")
    problems = {key: found for key, found in info.items() if found}
    ok = expect("every tensor is used and none is missing", not problems, problems)

    check = load_file(bundle / "check.safetensors")
    ids, positions = check["tokens"].long()[None], check["positions"].long()
    full = model(ids, use_cache=False).logits
    ok &= report("logits of mla-run", largest(full[0, positions], check["logits"]), tolerance)

    steps, cache = stepwise(model, ids)
    ok &= report("token by token from the cache", largest(steps, full), tolerance)

    prompt = {"input_ids": ids[:, :24], "attention_mask": torch.ones_like(ids[:, :24])}
    greedy = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (model.generate(**prompt, **greedy, use_cache=use) for use in (True, False))
    ok &= expect("greedy generation with and without a cache", torch.equal(with_cache, without), (with_cache, without))
    ok &= report("left-padded batch", padded(model, ids[:, :40], ids[:, 50:73], ids[:, 99:100]), tolerance)

    layers = json.loads((bundle / "conversion_report.json").read_text())["layers"]
    for layer in layers:
        if "sliding" not in layer["attention"]:
            found, said = cached_elements(cache, layer["index"], ids.shape[1]), layer["kv_elements_per_token"]
            ok &= expect(f"layer {layer['index']} ({layer['attention']}) caches {said} elements per token", found == said, found)

    if (bundle / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(bundle, trust_remote_code=True)
        text = "The value of x is 12, said Ada."
        ok &= expect("the tokenizer gives text back", tokenizer.decode(tokenizer(text)["input_ids"]) == text)
    return ok


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(0 if main(pathlib.Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) == 3 else 1e-4) else 1)
