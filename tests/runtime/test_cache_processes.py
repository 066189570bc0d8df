"""The cache under real processes and real signals."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from wolong_fx.runtime import load_kernel
from wolong_fx.testing.handwritten import add_then_reverse
from wolong_fx.toolchain import KernelCache
from wolong_fx.toolchain.compiler import build_library
from wolong_fx.toolchain.sealed_file import is_sealed

pytestmark = pytest.mark.cpu

SEED = 20240611


def computes_right(image, options) -> bool:
    n = image.inputs[0].shape[0]
    a, b = torch.arange(float(n)), torch.ones(n)
    return torch.equal(load_kernel(image, options)(a, b)[0], (a + b).flip(0))


def test_each_kernel_is_built_once_by_eight_processes_that_all_want_it(child, compiler, options, unseen):
    images = [unseen(add_then_reverse(n)) for n in (7, 8, 9)]

    def load_all() -> bool:
        return all(computes_right(image, options) for image in random.sample(images, len(images)))

    children = [child(load_all) for _ in range(8)]
    assert all(process.succeeds() for process in children)
    assert compiler.runs() == len(images)
    assert KernelCache.of(options).info().entries == len(images)


def test_each_kernel_is_built_once_by_threads_that_all_want_it(compiler, options, unseen):
    images = [unseen(add_then_reverse(n)) for n in (21, 22)]
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda image: computes_right(image, options), images * 3))
    assert compiler.runs() == len(images)


def test_builders_killed_at_any_moment_leave_a_cache_that_works(child, options, unseen):
    image, cache = unseen(add_then_reverse(11)), KernelCache.of(options)
    moment = random.Random(SEED)
    for _ in range(12):
        victim = child(lambda: computes_right(image, options))
        time.sleep(moment.uniform(0.0, 0.4))
        victim.kill()
        assert all(is_sealed(entry) for entry in cache.directory.glob("kernels/*"))
        if moment.random() < 0.5:
            cache.clear()
    assert child(lambda: computes_right(image, options)).succeeds()
    # The compiler of a killed builder runs on for a moment and may add a file to a directory being swept.
    deadline = time.monotonic() + 10
    while list(cache.directory.glob("tmp/*")) and time.monotonic() < deadline:
        cache.prune()
    assert list(cache.directory.glob("tmp/*")) == []
    assert cache.info().entries == 1


@pytest.fixture
def stuck_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CXX that says that it has started, having written half of its output, and then waits to be killed."""
    started, script = tmp_path / "started", tmp_path / "stuck-g++"
    script.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        f'echo half > "$2"; echo $$ > {started}.tmp; mv {started}.tmp {started}; exec sleep 60\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return started


def test_the_lock_of_a_killed_builder_is_free_and_its_leavings_are_swept(
    child, options, unseen, stuck_compiler, monkeypatch
):
    image, cache = unseen(add_then_reverse(12)), KernelCache.of(options)
    victim = child(lambda: computes_right(image, options))
    wait_for(stuck_compiler)
    victim.kill()
    assert len(list(cache.directory.glob("tmp/*/kernel.so"))) == 1
    monkeypatch.delenv("CXX")
    start = time.monotonic()
    assert child(lambda: computes_right(image, options)).succeeds()
    assert time.monotonic() - start < 20  # the patience with a living builder is minutes
    assert list(cache.directory.glob("tmp/*")) == []
    os.kill(int(stuck_compiler.read_text()), 9)


def test_pruning_leaves_the_build_of_a_living_process_alone(child, options, unseen, stuck_compiler):
    image, cache = unseen(add_then_reverse(13)), KernelCache.of(options)
    builder = child(lambda: computes_right(image, options))
    wait_for(stuck_compiler)
    cache.prune()
    cache.clear()
    assert len(list(cache.directory.glob("tmp/*/kernel.so"))) == 1
    builder.kill()
    cache.prune()
    assert list(cache.directory.glob("tmp/*")) == []
    os.kill(int(stuck_compiler.read_text()), 9)


def test_a_builder_that_never_ends_is_not_waited_for_for_ever(child, options, monkeypatch, stuck_compiler):
    cache, key = KernelCache.of(options), "cd" * 32
    source = 'extern "C" int answer() { return 1; }'
    builder = child(lambda: bool(cache.fetch(key, lambda d: build_library(source, (), d), str)))
    wait_for(stuck_compiler)
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("wolong_fx.toolchain.cache._PATIENCE", 0.2)
    assert "wolong_fx-" in cache.fetch(key, lambda d: build_library(source, (), d), str)
    builder.kill()
    os.kill(int(stuck_compiler.read_text()), 9)


def wait_for(file: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never came"
        time.sleep(0.005)
