"""Attention and encoder layers that torch runs as one operator in evaluation, as what they are made of.

`nn.MultiheadAttention` and `nn.TransformerEncoderLayer` take this way ("fast path") where no gradient is
wanted; torch has kernels for it and no rules. Here the parts become one kernel with everything around them.
B samples, T positions, D width, N heads of width E.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OF_POSITIONS, OF_SAMPLES = 0, 1  # torch's mask_type: (T, T), or (B, T) over keys; not 0 where not to look


def decompose_native_attention(
    query_BTD: Tensor,
    key_BTD: Tensor,
    value_BTD: Tensor,
    width: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> Any:
    """aten._native_multi_head_attention: (output, weights or nothing). NotImplemented for masks it may not
    know, and for nested tensors.
    """
    inputs = query_BTD, key_BTD, value_BTD
    if not _is_plain(mask, mask_type) or any(x.is_nested for x in inputs):
        return NotImplemented
    pairs = zip(inputs, qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True)
    query, key, value = (_heads(F.linear(x, w, b), heads) for x, w, b in pairs)
    scores_BNTT = query @ key.transpose(-2, -1) / sqrt(width // heads)
    if mask is None:
        weights_BNTT = torch.softmax(scores_BNTT, -1)
    else:  # who may look nowhere sees nothing, not NaN
        hidden = (mask if mask_type == OF_POSITIONS else mask[:, None, None, :]).to(torch.bool)
        weights_BNTT = torch.softmax(scores_BNTT.masked_fill(hidden, -torch.inf), -1).masked_fill(hidden, 0)
    mixed_BTD = (weights_BNTT @ value).transpose(1, 2).flatten(2)
    output_BTD = F.linear(mixed_BTD, project_weight, project_bias)
    if not need_weights:
        return output_BTD, query_BTD.new_empty(0)
    return output_BTD, weights_BNTT.mean(1) if average_attn_weights else weights_BNTT


def decompose_encoder_layer(
    x_BTD: Tensor,
    width: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Any:
    """aten._transformer_encoder_layer_fwd: attention and feed-forward, each added to what it got."""
    if not _is_plain(mask, mask_type) or x_BTD.is_nested:
        return NotImplemented
    shape = (width,)

    def attend(x: Tensor) -> Tensor:
        weights = qkv_weight, qkv_bias, project_weight, project_bias
        return decompose_native_attention(x, x, x, width, heads, *weights, mask, False, True, mask_type)[0]

    def feed(x: Tensor) -> Tensor:
        up = F.linear(x, up_weight, up_bias)
        return F.linear(F.gelu(up) if use_gelu else F.relu(up), down_weight, down_bias)

    if norm_first:
        x_BTD = x_BTD + attend(F.layer_norm(x_BTD, shape, norm_weight_1, norm_bias_1, eps))
        return x_BTD + feed(F.layer_norm(x_BTD, shape, norm_weight_2, norm_bias_2, eps))
    x_BTD = F.layer_norm(x_BTD + attend(x_BTD), shape, norm_weight_1, norm_bias_1, eps)
    return F.layer_norm(x_BTD + feed(x_BTD), shape, norm_weight_2, norm_bias_2, eps)


def _is_plain(mask: Tensor | None, mask_type: int | None) -> bool:
    return mask is None or mask_type in (OF_POSITIONS, OF_SAMPLES)


def _heads(x_BTD: Tensor, heads: int) -> Tensor:
    """(B, N, T, E)"""
    return x_BTD.unflatten(-1, (heads, -1)).transpose(1, 2)
