"""Triton kernels that take one thing apart: meeting at the barrier, and reading weights from the L2 cache.

Grids are launched cooperatively, as ours are.
"""

import triton
import triton.language as tl

from wolong_fx.codegen.triton.barrier import grid_barrier, grid_barrier_by_one_thread


@triton.jit(do_not_specialize=["rounds"])
def meet(word, rounds, G: tl.constexpr):
    """All blocks meet so many times. word: uint32, zero"""
    for _ in range(rounds):
        grid_barrier(word, G)


@triton.jit(do_not_specialize=["rounds"])
def meet_by_one_thread(word, rounds, G: tl.constexpr):
    """As meet."""
    for _ in range(rounds):
        grid_barrier_by_one_thread(word, G)


@triton.jit(do_not_specialize=["rounds"])
def read_all(data, sums, rounds, COUNT: tl.constexpr, LANES: tl.constexpr):
    """In each round the blocks together read all of `data`: COUNT float32.

    Loads pass the L1 cache by, and a block reads other parts in every round: no load is like the last.
    sums: (blocks, LANES) float32, written so that the reads have a use
    """
    pid, blocks, lanes = tl.program_id(0), tl.num_programs(0), tl.arange(0, LANES)
    total = tl.zeros((LANES,), tl.float32)
    for round_ in range(rounds):
        for start in range((pid + round_) % blocks * LANES, COUNT, blocks * LANES):
            at = start + lanes
            total += tl.load(data + at, mask=at < COUNT, other=0.0, cache_modifier=".cg")
    tl.store(sums + pid * LANES + lanes, total)
