"""Tiles are chosen by what a stage costs: everyone has work, weights of a loop fit where they are kept, large
products use tiles of matrices.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from wolong_fx.codegen.triton import choose_tile, emit_program
from wolong_fx.codegen.triton.fit import fit_program
from wolong_fx.codegen.triton.gpu_costs import GPU_COSTS
from wolong_fx.codegen.triton.keep import KEPT_BYTES, find_kept
from wolong_fx.codegen.triton.reductions import SMALLEST_DOT
from wolong_fx.ir.expr import Cast
from wolong_fx.ir.index import Index, Var
from wolong_fx.ir.program import OpInst, Program, Store
from wolong_fx.ir.types import DType
from wolong_fx.runtime.gpu import ARCHITECTURES, TritonBinary, TritonImage
from wolong_fx.testing.kernels import map_ops
from wolong_fx.testing.programs import ProgramBuilder, at, dot, load, operator, recurrence


def product(m: int, n: int, k: int, *, in_loop: bool = False, dtype: DType = DType.F32) -> OpInst:
    """a @ b, or in a loop the state of the trip before @ b."""
    p = ProgramBuilder("product")
    a, b, c = p.input("a", 2, m, k, dtype=dtype), p.input("b", k, n, dtype=dtype), p.output("c", 9, m, n)
    i, j, v, t = Var("i", m), Var("j", n), Var("k", k), Var("t", 9)
    left, right = load(a, Index.of(t) % 2 if in_loop else 0, i, v), load(b, v, j)
    if dtype is not DType.F32:
        left, right = Cast(left, DType.F32), Cast(right, DType.F32)
    return operator("product", (i, j), Store(at(c, t if in_loop else 0, i, j), dot(v, left, right)))


def tiled(op: OpInst, architecture: str = "sm_90", precision: str = "ieee") -> OpInst:
    return replace(op, tile=choose_tile(op, GPU_COSTS[architecture], precision))


@pytest.mark.parametrize("architecture", GPU_COSTS)
@pytest.mark.parametrize("width", [256, 512, 1024])
def test_a_step_of_a_recurrence_has_a_block_on_most_multiprocessors_and_keeps_its_weights(
    width, architecture
):
    op = tiled(product(1, width, width, in_loop=True), architecture)
    devices = GPU_COSTS[architecture].multiprocessors
    assert devices / 4 < op.virtual_blocks <= devices
    assert prod(op.tile) * width * 4 <= KEPT_BYTES


def test_few_rows_are_multiplied_by_split_lanes_and_many_by_tiles_of_matrices():
    assert min(tiled(product(4, 512, 512)).tile) < SMALLEST_DOT
    large = tiled(product(4096, 4096, 4096))
    assert large.tile == (64, 64)
    narrow = tiled(product(4096, 4096, 4096, dtype=DType.BF16))
    assert sorted(narrow.tile) == [64, 128]
    rounded = tiled(product(4096, 4096, 4096), precision="tf32")
    assert sorted(rounded.tile) == [64, 128]


@pytest.mark.parametrize("shape", [(64, 1024, 1024), (256, 256, 256), (16, 1024, 256), (1, 4096, 4096)])
def test_every_multiprocessor_has_a_part_of_a_product_where_there_are_enough(shape):
    op = tiled(product(*shape))
    assert op.virtual_blocks >= min(GPU_COSTS["sm_90"].multiprocessors, op.points // 64) * 0.45


def test_the_same_operator_is_cut_alike_every_time():
    assert len({tiled(product(48, 96, 64)).tile for _ in range(3)}) == 1


# ---- what the compiler says


def chosen(program: Program) -> Program:
    return map_ops(program, tiled)


def binary(image: TritonImage, *, registers: int, spill_bytes: int) -> TritonBinary:
    return TritonBinary(b"", "", registers, spill_bytes, 0, image.warps, image.architecture)


def test_a_kernel_that_spills_keeps_less():
    program, asked = chosen(recurrence(width=256)), []

    def build(image: TritonImage) -> TritonBinary:
        asked.append(image)
        keeps = "tile1_keep" in image.text and "w0" in image.text
        return binary(image, registers=64, spill_bytes=8 if keeps else 0)

    source, found = fit_program(program, "ieee", ARCHITECTURES["sm_90"], build)
    assert len(asked) > 1 and not found.spill_bytes and "w0" not in source.text


def test_a_kernel_that_fits_is_compiled_once():
    asked = []

    def build(image: TritonImage) -> TritonBinary:
        asked.append(image)
        return binary(image, registers=64, spill_bytes=0)

    source, _ = fit_program(chosen(recurrence(width=256)), "ieee", ARCHITECTURES["sm_90"], build)
    assert len(asked) == 1 and "w0" in source.text


def test_a_kernel_whose_blocks_are_not_resident_is_taken_last():
    def build(image: TritonImage) -> TritonBinary:
        return binary(image, registers=600 if "w0" in image.text else 64, spill_bytes=0)

    source, found = fit_program(chosen(recurrence(width=256)), "ieee", ARCHITECTURES["sm_90"], build)
    assert found.registers == 64 and "w0" not in source.text


def test_where_nothing_fits_the_nearest_is_taken():
    def build(image: TritonImage) -> TritonBinary:
        return binary(image, registers=64, spill_bytes=4 if "w0" in image.text else 16)

    source, found = fit_program(chosen(recurrence(width=256)), "ieee", ARCHITECTURES["sm_90"], build)
    assert found.spill_bytes == 4 and "w0" in source.text


def test_blocks_that_hold_much_have_more_warps():
    assert emit_program(chosen(recurrence(width=256))).warps == 4
    wide = map_ops(recurrence(width=1024), lambda op: replace(op, tile=(8,)))
    assert find_kept(wide) and emit_program(wide).warps == 8
