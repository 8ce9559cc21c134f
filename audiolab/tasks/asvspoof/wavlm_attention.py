"""WavLM's self-attention with its projections called as modules, so that adapters on them act.

The one in `transformers` hands `q_proj.weight` itself to torch's attention function: an adapter put on `q_proj` by peft
would be trained on nothing, without a word.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def relative_position_buckets(num_frames: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each (query, key) offset, (frames, frames): half for each sign, exact when near, logarithmic when far.

    Raffel et al. 2020 (T5), as WavLM (Chen et al. 2022, section 3.1) uses it.

    >>> relative_position_buckets(4, num_buckets=8, max_distance=16)[0].tolist()
    [0, 5, 6, 6]
    """
    half, exact = num_buckets // 2, num_buckets // 4
    frames = torch.arange(num_frames)
    offset = frames[None, :] - frames[:, None]
    distance = offset.abs()
    growth = torch.log(distance.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp_max(half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


class GatedAttention(nn.Module):
    """Multi-head attention with WavLM's gated relative position bias, made of the parts of transformers' own.

    bias_ij = d_{|i-j|} g_i, g_i = a_i (b_i c - 1) + 2 with gates a, b from frame i (Chen et al. 2022, equations 4-7);
    d is the first layer's and is handed on to the others as `position_bias` (heads, frames, frames). Parameter names
    and outputs are those of `transformers.models.wavlm.modeling_wavlm.WavLMAttention`.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.num_heads, self.dropout = attention.num_heads, attention.dropout
        self.num_buckets, self.max_distance = attention.num_buckets, attention.max_distance
        self.gru_rel_pos_const = attention.gru_rel_pos_const
        for name, part in attention.named_children():
            setattr(self, name, part)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None = None,
        position_bias: Tensor | None = None,
        index: int = 0,
    ) -> tuple[Tensor, None, Tensor]:
        """Attend over (batch, frames, dim): output, no weights, the bias for the layers that follow.

        The arguments are those with which transformers' layers call it; there is no padding, so no mask.
        """
        if position_bias is None:
            buckets = relative_position_buckets(hidden_states.shape[1], self.num_buckets, self.max_distance)
            position_bias = self.rel_attn_embed(buckets.to(hidden_states.device)).permute(2, 0, 1)
        heads_bhtd = self._heads(hidden_states)
        gate_bht2 = torch.sigmoid(self.gru_rel_pos_linear(heads_bhtd).unflatten(-1, (2, 4)).sum(-1))
        gate_a, gate_b = gate_bht2.chunk(2, dim=-1)
        bias_bhtt = (gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0) * position_bias
        query, key, value = (self._heads(p(hidden_states)) for p in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        mixed_bhtd = F.scaled_dot_product_attention(query, key, value, bias_bhtt.to(query.dtype), dropout)
        return self.out_proj(mixed_bhtd.transpose(1, 2).flatten(2)), None, position_bias

    def _heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
