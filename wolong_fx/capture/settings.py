"""Global switches that hold while a model is traced, and only then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.nn.attention import SDPBackend, sdpa_kernel

from wolong_fx import _torch_compat


@contextlib.contextmanager
def settings_for_tracing() -> Iterator[None]:
    """Switches under which a model traces to plain operators.

    mkldnn off: with it a recurrence becomes one opaque operator, whose training graph crashes on a CPU.
    Attention by its formula: the fused CPU kernel has no decomposition for its backward.
    """
    with _torch_compat.without_mkldnn(), sdpa_kernel([SDPBackend.MATH]), _torch_compat.settings_for_aot():
        yield
