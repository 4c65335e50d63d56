"""Configuration of GPT-OSS with Multi-Head Latent Attention in some layers."""

from huggingface_hub.dataclasses import strict
from transformers import GptOssConfig


@strict
class GptOssMlaConfig(GptOssConfig):
    r"""
    A GPT-OSS configuration with one addition:

    mla (`list`):
        One entry per layer: `null` for a stock layer; for a converted one a table with

        - `kv_lora_rank`: the size of the cached latent, and
        - `rope_pairs`: the rotary frequencies `j`, ascending, of the pairs `(j, j + head_dim / 2)` whose rotated keys are cached
          exactly for each key/value head. The other pairs are not rotated; they are rebuilt from the latent.
        - `shared_rope` (absent: false): all heads share one rotated key with a component for each entry of `rope_pairs`, where a
          frequency may come more than once; un-rotated keys are as wide as a head.

        A layer of type `sliding_attention` with an entry sees the last `sliding_window` tokens only.
    """

    model_type = "gpt_oss_mla"

    mla: list[dict | None] | None = None

    def __post_init__(self, **kwargs):
        if self.mla is None:
            self.mla = [None] * self.num_hidden_layers
        if len(self.mla) != self.num_hidden_layers:
            raise ValueError(f"`mla` has {len(self.mla)} entries for {self.num_hidden_layers} layers")
        # Masks and caches of a latent layer are those of full attention; one with a window is a sliding layer already.
        if self.layer_types is not None:
            self.layer_types = ["full_attention" if t == "latent_attention" else t for t in self.layer_types]
        super().__post_init__(**kwargs)
        for i, (entry, kind) in enumerate(zip(self.mla, self.layer_types)):
            if entry is not None and kind not in ("full_attention", "sliding_attention"):
                raise ValueError(f"layer {i} is `{kind}` and has an entry in `mla`; only softmax attention can be latent")


__all__ = ["GptOssMlaConfig"]
