"""How exact products of float32 matrices on a GPU have to be: what torch's settings say.

There are four ways to say it: `torch.backends.cuda.matmul.fp32_precision`, `torch.backends.fp32_precision`,
`torch.backends.cuda.matmul.allow_tf32` (reading which fails where the ways were mixed) and
`torch.set_float32_matmul_precision`. The first shows what any of them said. Dynamo's guard of global state
contains it, so a model is compiled again when it changes. Products of bfloat16 and float16 add up in float32,
whatever `allow_bf16_reduced_precision_reduction` and its like allow: they permit less, nothing asks for it.
"""

from __future__ import annotations

import torch


def float32_precision() -> str:
    """ "ieee", or "tf32" where tensor cores may round the factors to 10 bits."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
