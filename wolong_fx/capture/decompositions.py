"""Which operators come decomposed, so that codegen meets few kinds: core ATen, and a little below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from wolong_fx import _torch_compat
from wolong_fx.capture.decompose_attention import decompose_encoder_layer, decompose_native_attention

aten = torch.ops.aten

# Core ATen keeps these whole. Their parts are reductions and pointwise operators that fuse with their like.
BELOW_CORE = (
    "native_layer_norm",
    "native_group_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_log_softmax",
)

# Decomposed, they would draw by `rand` and give other numbers than eager for the same seed.
RANDOM = ("bernoulli", "native_dropout", "rrelu", "rrelu_with_noise", "multinomial")

# One kernel each, eager's or ours: codegen lowers embedding's backward and max pooling whole, and leaves the
# rest to torch, whose kernels no sequence of smaller operators beats.
BETTER_WHOLE = (
    *("embedding_dense_backward", "max_pool", "upsample_", "_upsample_"),
    *("im2col", "col2im", "grid_sampler"),
)

# Their rules may return the view itself, which AOTAutograd refuses in the body of a loop.
VIEW_COPIES = (
    *("alias_copy", "diagonal_copy", "expand_copy", "split_with_sizes_copy", "squeeze_copy"),
    *("t_copy", "transpose_copy", "unfold_copy", "unsqueeze_copy"),
)


@cache
def decomposition_table() -> Mapping[Any, Callable[..., Any]]:
    """Operator overload -> its decomposition. Made once: the export table takes a moment to build."""
    core = torch.export.default_decompositions()
    kept = {op: rule for op, rule in core.items() if not _stays_whole(op)}
    below = _torch_compat.get_decompositions([getattr(aten, name) for name in BELOW_CORE])
    return kept | below | OURS


def decompose_weight_norm_backward(
    gradient: Tensor, direction: Tensor, size: Tensor, norm: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Gradients of direction and size of `direction / norm * size`; torch has a fused kernel and no rule."""
    others = [d for d in range(direction.dim()) if d != dim % direction.dim()]
    along = torch.sum(gradient * direction, others, keepdim=True)
    to_direction = size / norm * (gradient - direction * (along / (norm * norm)))
    return to_direction.to(direction.dtype), (along / norm).to(size.dtype)  # a norm of bfloat16 is float32


def decompose_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """As torch's, with one division a row: the reciprocal of the sum is off by half a last place at most."""
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    if not x.numel():
        return torch.zeros_like(wide if half_to_float else x)
    grown = torch.exp(wide - torch.amax(wide, [dim], keepdim=True))
    result = grown * torch.reciprocal(torch.sum(grown, [dim], keepdim=True))
    return result if half_to_float else result.to(x.dtype)


def decompose_var_mean(
    x: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Two core operators; torch's own decomposition leaves ATen for prims."""
    axes = list(range(x.dim())) if dim is None or not dim else dim
    return torch.var(x, axes, correction=correction, keepdim=keepdim), torch.mean(x, axes, keepdim)


def decompose_copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`source` with the shape and dtype of `x`, which is then not read: as in `cache[2:4] = y`.

    Functionalisation writes `copy(view, y)` there. A look at memory that is written would stay with torch.
    """
    if x.device != source.device:
        return NotImplemented
    steps = torch.empty_like(x).stride()  # as eager's copy has, gaps of a view apart
    order = sorted(range(x.dim()), key=lambda dim: -steps[dim])
    back = sorted(range(x.dim()), key=order.__getitem__)
    laid_out = source.to(x.dtype).expand_as(x).permute(order)
    return laid_out.clone(memory_format=torch.contiguous_format).permute(back)


def _stays_whole(op: Any) -> bool:
    name = str(op).split(".")[1] if str(op).startswith("aten.") else ""
    return (
        name in RANDOM
        or name in VIEW_COPIES
        or any(name == w or (w in name and name.startswith(w)) for w in BETTER_WHOLE)
    )


# Operators that torch has no rule for, or one that leaves ATen or is slower here.
OURS = {
    aten._softmax.default: decompose_softmax,
    aten._native_multi_head_attention.default: decompose_native_attention,
    aten._transformer_encoder_layer_fwd.default: decompose_encoder_layer,
    aten.copy.default: decompose_copy,
    aten.var_mean.correction: decompose_var_mean,
    aten._weight_norm_interface_backward.default: decompose_weight_norm_backward,
}
