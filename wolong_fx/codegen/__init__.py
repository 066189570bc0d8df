"""From an FX partition to a program, its schedule, its source and a callable.

The way through: `lower/` makes operator instances of FX nodes; the steps listed in `compile.py` fuse and
    batch them; `schedule_ops` packs them into stages; `plan_memory` gives addresses; a target (`cpp/`,
    `reference/`) makes a kernel.
"""

from wolong_fx.codegen.compile import STEP_DOCS, STEPS, build_programs, compile_partition
from wolong_fx.codegen.count_copies import copies_of_torch
from wolong_fx.codegen.library_matmuls import why_left_to_library
from wolong_fx.codegen.lower import why_unsupported
from wolong_fx.codegen.products_in_loops import is_worth_steps

__all__ = [
    "STEPS",
    "STEP_DOCS",
    "build_programs",
    "compile_partition",
    "copies_of_torch",
    "is_worth_steps",
    "why_left_to_library",
    "why_unsupported",
]
