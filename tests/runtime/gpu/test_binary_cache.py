"""Binaries of Triton's on the disk: kept, found, refused when damaged, and apart from others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wolong_fx.errors import TritonFailed
from wolong_fx.runtime.gpu import ARCHITECTURES, TritonBinary, TritonImage, binary_cache
from wolong_fx.runtime.gpu.binary_cache import cached_binary
from wolong_fx.toolchain.cache import KernelCache

IMAGE = TritonImage("def wolong(): ...", (("tensor0", "*fp32"),), ARCHITECTURES["sm_90"], 8)


@pytest.fixture
def built(monkeypatch) -> list[TritonImage]:
    """What was really compiled."""
    images: list[TritonImage] = []

    def build(image: TritonImage) -> TritonBinary:
        images.append(image)
        return TritonBinary(b"code", "assembly", 32, 0, 128, image.warps, image.architecture)

    monkeypatch.setattr(binary_cache, "build_triton", build)
    return images


def entry(options):
    (path,) = (KernelCache.of(options).directory / "kernels").glob("*.gpu")
    return path


def test_a_kernel_is_compiled_once(options, built):
    first, second = cached_binary(IMAGE, options), cached_binary(IMAGE, options)
    assert first == second and first.code == b"code" and len(built) == 1


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\0" + b[1:], lambda b: b""])
def test_a_damaged_entry_is_compiled_again(options, built, damage):
    cached_binary(IMAGE, options)
    path = entry(options)
    path.write_bytes(damage(path.read_bytes()))
    assert cached_binary(IMAGE, options).code == b"code" and len(built) == 2
    cached_binary(IMAGE, options)
    assert len(built) == 2


@pytest.mark.parametrize(
    "other",
    [
        replace(IMAGE, text="def wolong(): pass"),
        replace(IMAGE, blocks=9),
        replace(IMAGE, warps=8),
        replace(IMAGE, stages=2),
        replace(IMAGE, architecture=ARCHITECTURES["sm_80"]),
        replace(IMAGE, pointers=(("tensor0", "*fp16"),)),
        replace(IMAGE, loops=0),
    ],
    ids=["text", "grid", "warps", "stages", "architecture", "types", "form"],
)
def test_whatever_changes_a_binary_has_an_entry_of_its_own(options, built, other):
    cached_binary(IMAGE, options)
    cached_binary(other, options)
    assert len(built) == 2


def test_another_triton_compiles_anew(options, built, monkeypatch):
    cached_binary(IMAGE, options)
    monkeypatch.setattr(binary_cache, "_triton_version", lambda: "99.0")
    cached_binary(IMAGE, options)
    assert len(built) == 2


def test_the_hand_written_parts_of_a_kernel_are_part_of_its_name(options, built, monkeypatch, tmp_path):
    from wolong_fx.runtime.gpu import standalone

    text = "from wolong_fx.codegen.triton.barrier import grid_barrier\ndef wolong(): ..."
    image = replace(IMAGE, text=text)
    cached_binary(image, options)
    (tmp_path / "barrier.py").write_text("def grid_barrier(): 'another'")
    monkeypatch.setattr(standalone, "LIBRARY", tmp_path)
    cached_binary(image, options)
    assert len(built) == 2


def test_what_could_not_be_compiled_leaves_no_entry(options, monkeypatch):
    def fail(image: TritonImage) -> TritonBinary:
        raise TritonFailed(architecture="sm_90", because="it crashed", source="kernel.py")

    monkeypatch.setattr(binary_cache, "build_triton", fail)
    with pytest.raises(TritonFailed):
        cached_binary(IMAGE, options)
    assert KernelCache.of(options).info().entries == 0


def test_kernels_of_both_compilers_count_against_one_cap_and_are_cleared_together(options, built):
    cached_binary(IMAGE, options)
    cache = KernelCache.of(options)
    assert cache.info().entries == 1 and cache.info().size_bytes > 0
    assert cache.clear() == 1 and cache.info().entries == 0
