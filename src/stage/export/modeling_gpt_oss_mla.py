"""GPT-OSS with Multi-Head Latent Attention (MLA) in some layers; everything else is the stock model of transformers.

A converted layer caches, per token, a latent `z` of `rank` values and the rotated keys of some rotary frequencies:

    z               = kv_a_proj(x)               [rank]
    k_rope[g]       = rope(k_rope_proj(x)[g])    [2 * pairs], exact, per key/value head g
    k_nope[g], v[g] = kv_b_proj(z)[g]            [head_dim - 2 * pairs], [head_dim]
    logits          = (q_nope . k_nope + q_rope . k_rope) * head_dim ** -0.5

With `shared_rope` there is one k_rope for all heads, a component for each entry of `rope_pairs`, and k_nope is as wide as a head.

Channels of `q_proj` per head: first the pairs that are not rotated, then the rotated ones; within each part the first halves of
all pairs come before the second halves. YaRN's attention factor is part of the rotation, so it scales rotated channels only;
for the others it is folded into the weights. Sinks, biases, windows, router and experts are those of GPT-OSS.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import (
    GptOssAttention,
    GptOssForCausalLM,
    GptOssModel,
    GptOssPreTrainedModel,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .configuration_gpt_oss_mla import GptOssMlaConfig


class GptOssMlaAttention(GptOssAttention):
    """Attention with exact rotated keys and a latent for the rest. The cache holds both, and nothing else."""

    def __init__(self, config: GptOssMlaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.pairs = config.mla[layer_idx]["rope_pairs"]
        self.rank = config.mla[layer_idx]["kv_lora_rank"]
        self.kv_heads = config.num_key_value_heads
        self.rope_dim = 2 * len(self.pairs)
        shared = config.mla[layer_idx].get("shared_rope", False)
        self.rope_heads = 1 if shared else self.kv_heads
        self.nope_dim = self.head_dim if shared else self.head_dim - self.rope_dim
        self.qk_dim = self.nope_dim + self.rope_dim
        del self.k_proj, self.v_proj
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.qk_dim, bias=bias)
        self.kv_a_proj = nn.Linear(config.hidden_size, self.rank, bias=bias)
        if self.rope_dim > 0:
            self.k_rope_proj = nn.Linear(config.hidden_size, self.rope_heads * self.rope_dim, bias=bias)
        self.kv_b_proj = nn.Linear(self.rank, self.kv_heads * (self.nope_dim + self.head_dim), bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, length = hidden_states.shape[:-1]
        q = self.q_proj(hidden_states).view(batch, length, -1, self.qk_dim).transpose(1, 2)
        latent = self.kv_a_proj(hidden_states).unsqueeze(1)
        k_rope = latent.new_empty(batch, self.rope_heads, length, 0)
        if self.rope_dim > 0:
            k_rope = self.k_rope_proj(hidden_states).view(batch, length, self.rope_heads, self.rope_dim).transpose(1, 2)
            cos, sin = (t[..., self.pairs] for t in position_embeddings)
            q_nope, q_rope = q.split([self.nope_dim, self.rope_dim], dim=-1)
            q_rope, k_rope = apply_rotary_pos_emb(q_rope, k_rope, cos, sin)
            q = torch.cat([q_nope, q_rope], dim=-1)

        if past_key_values is not None:
            latent, k_rope = past_key_values.update(latent, k_rope, self.layer_idx)
        if length == 1 and self.config._attn_implementation == "eager":
            out, weights = self.absorbed(q, latent, k_rope, attention_mask)
        else:
            out, weights = self.expanded(q, latent, k_rope, attention_mask, **kwargs)
        return self.o_proj(out.reshape(batch, length, -1)), weights

    def expanded(self, q, latent, k_rope, attention_mask, **kwargs):
        """Rebuilds keys and values, then attends as grouped-query attention does: for prompts."""
        batch, _, length, _ = latent.shape
        kv = self.kv_b_proj(latent).view(batch, length, self.kv_heads, -1).transpose(1, 2)
        k_nope, v = kv.split([self.nope_dim, self.head_dim], dim=-1)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return attend(
            self,
            q,
            torch.cat([k_nope, k_rope.expand(-1, self.kv_heads, -1, -1)], dim=-1),
            v,
            attention_mask,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            s_aux=self.sinks,
            **kwargs,
        )

    def absorbed(self, q, latent, k_rope, attention_mask):
        """Attends to the latent itself, without rebuilding keys and values: for one new token."""
        batch, heads, length, _ = q.shape
        q = q.reshape(batch, self.kv_heads, -1, length, self.qk_dim)  # query heads by their key/value head
        q_nope, q_rope = q.split([self.nope_dim, self.rope_dim], dim=-1)
        w = self.kv_b_proj.weight.view(self.kv_heads, self.nope_dim + self.head_dim, self.rank)
        w_k, w_v = w.split([self.nope_dim, self.head_dim], dim=1)

        logits = torch.einsum("bghtn,gnr,bsr->bghts", q_nope, w_k, latent[:, 0])
        logits = logits + torch.einsum("bghtp,bgsp->bghts", q_rope, k_rope.expand(-1, self.kv_heads, -1, -1))
        logits = (logits * self.scaling).reshape(batch, heads, length, -1)
        if attention_mask is not None:
            logits = logits + attention_mask

        sinks = self.sinks.view(1, -1, 1, 1).expand(batch, -1, length, 1).to(logits.dtype)
        weights = torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]

        p = weights.reshape(batch, self.kv_heads, -1, length, weights.shape[-1])
        out = torch.einsum("bghts,bsr,gdr->bghtd", p, latent[:, 0], w_v)
        return out.reshape(batch, heads, length, self.head_dim).transpose(1, 2), weights


class GptOssMlaModel(GptOssModel):
    config_class = GptOssMlaConfig

    def __init__(self, config: GptOssMlaConfig):
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            if config.mla[index] is not None:
                layer.self_attn = GptOssMlaAttention(config, index)
        self.post_init()


class GptOssMlaForCausalLM(GptOssForCausalLM):
    config_class = GptOssMlaConfig

    def __init__(self, config: GptOssMlaConfig):
        GptOssPreTrainedModel.__init__(self, config)
        self.model = GptOssMlaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts = config.num_local_experts
        self.num_experts_per_tok = config.num_experts_per_tok
        self.post_init()


__all__ = ["GptOssMlaForCausalLM", "GptOssMlaModel"]
