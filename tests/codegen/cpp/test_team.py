"""The thread team: results do not depend on its size, barriers order memory, launches can overlap."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wolong_fx.codegen.cpp import emit_program
from wolong_fx.codegen.cpp.traffic import ops_in, touched_bytes
from wolong_fx.ir.program import Loop, Program
from wolong_fx.ir.types import BufferKind
from wolong_fx.options import Options
from wolong_fx.runtime import Kernel, load_kernel
from wolong_fx.testing.kernels import build_kernel, image_of, with_chosen_tiles
from wolong_fx.testing.programs import TYPICAL, inputs_of, random_program, recurrence
from wolong_fx.toolchain import isa_flags
from wolong_fx.toolchain.compiler import COMMON_FLAGS, get_compiler

pytestmark = pytest.mark.cpu


def stacked() -> dict[str, object]:
    return {**TYPICAL, **{f"random{seed}": lambda seed=seed: random_program(seed) for seed in range(3)}}


@pytest.mark.parametrize("name", stacked())
@pytest.mark.avx512
def test_one_and_two_threads_agree_to_the_bit(run_cpp, name):
    program = stacked()[name]()  # type: ignore[operator]
    given = inputs_of(program)
    alone, team = (run_cpp(program, given, "avx512", threads) for threads in (1, 2))
    for a, b in zip(alone, team, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


ONE_TRIP = max(
    touched_bytes(ops_in(item.body)) for item in TYPICAL["recurrence"]().body if isinstance(item, Loop)
)


@pytest.mark.avx512
@pytest.mark.parametrize("core_cache_bytes", [inf, ONE_TRIP, 0], ids=["forwards", "back if alone", "back"])
def test_a_kernel_cut_for_a_team_runs_on_one_thread(core_cache_bytes):
    program = with_chosen_tiles(TYPICAL["recurrence"](), "avx512", 4)
    given = inputs_of(program)
    kernel = build_kernel(program, "avx512", 4, Options.of(), core_cache_bytes)
    wanted = build_kernel(program, "avx512", 1, Options.of())(*given)
    kernel._run = lambda block: library_run(kernel, block)  # one thread, whatever the team's size
    for a, b in zip(kernel(*given), wanted, strict=True):
        assert torch.equal(a, b)


def library_run(kernel: object, block: object) -> int:
    import wolong_fx.runtime.kernel as runtime_kernel
    from wolong_fx.toolchain.cache import cache_key

    image = kernel.image  # type: ignore[attr-defined]
    return runtime_kernel._libraries[cache_key(image.source, image.flags)].wolong_run(block, 1, 0)


LATE = """\
extern "C" int usleep(unsigned);
extern "C" i64 late_at;
i64 late_at = 0;
static void let_time_pass(void) {
  __atomic_add_fetch(&made_up_time, 1000000, __ATOMIC_RELAXED);
  usleep(100);
}
// In the work before barrier `late_at` of a call, from 1, the last thread's processor is taken until the team
// is to part, and before the next barrier once more.
static void be_late(const Worker* w) {
  const i64 late = w->epoch + 1 - *word(w, EPOCH) - late_at;
  if (w->number < THREADS - 1 || !late_at || (late != 0 && late != 1)) return;
  while (!__atomic_load_n(word(w, PARTING), __ATOMIC_RELAXED)) let_time_pass();
  for (i32 i = 0; i < 50; i++) let_time_pass();
}
"""
CLOCK = """\
static i64 made_up_time = 0;
static i64 now(void) { return __atomic_load_n(&made_up_time, __ATOMIC_RELAXED); }
static i64 unused(void) {"""


def kernel_with_a_late_thread(program: Program, threads: int) -> Kernel:
    """Only the time that its last thread is late passes; where that is, its variable `late_at` says."""
    image = image_of(program, emit_program(program, "avx512", threads), "avx512")
    source = image.source.replace("static i64 now(void) {", CLOCK)
    source = source.replace("NOINLINE void run_stages(", LATE + "NOINLINE void run_stages(")
    source = source.replace("s < end; s++) {\n", "s < end; s++) {\n    be_late(w);\n")
    return load_kernel(replace(image, source=source), Options.of())


@pytest.mark.avx512
@pytest.mark.parametrize("threads", [2, 3])
def test_a_team_parts_after_the_barrier_at_which_the_callers_patience_ended(threads):
    program = with_chosen_tiles(recurrence(steps=4, width=256), "avx512", threads)
    given, kernel = inputs_of(program), kernel_with_a_late_thread(program, threads)
    late_at = ctypes.c_long.in_dll(kernel.library, "late_at")
    header = [0, 0]

    def run(at: int, team: int) -> list[Tensor]:
        def launch(block: ctypes.Array[ctypes.c_void_p]) -> int:
            failed = kernel.library.wolong_run(block, team, 2000)
            header[:] = (ctypes.c_long * 2).from_address(block[0] or 0)
            return failed

        late_at.value, kernel._run = at, launch
        return kernel(*given)

    wanted = run(0, 1)
    run(0, threads)
    barriers, parting = header
    assert barriers > 2 and parting == 0
    for at in range(1, barriers + 1):
        before = header[0]
        assert all(map(torch.equal, run(at, threads), wanted))
        assert header == [before + barriers, before + at + 1]
        assert all(map(torch.equal, run(0, threads), wanted))
        assert header[1] == 0


@pytest.mark.avx512
def test_overlapping_launches_do_not_meet():
    program = with_chosen_tiles(TYPICAL["recurrence"](), "avx512", 2)
    kernel = build_kernel(program, "avx512", 2, Options.of())
    sets = [inputs_of(program, seed) for seed in range(4)]
    wanted = [kernel(*given) for given in sets]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for found, expected in zip(pool.map(lambda g: kernel(*g), sets), wanted, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


DRIVER = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sched.h>
#include <thread>
#include <time.h>
#include <vector>
static thread_local int number;
static void parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> team;
  for (unsigned t = 1; t < threads; t++) team.emplace_back([=] { number = t; body(data); });
  number = 0;
  body(data);
  for (auto& t : team) t.join();
}
static int thread_num() { return number; }
struct Host {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_num)();
  int (*yield)();
  int (*clock)(int, timespec*);
  int monotonic;
};
extern "C" void wolong_init(const Host*);
extern "C" long wolong_run(void**, int, int);
int main() {
  static const Host host = {parallel, thread_num, sched_yield, clock_gettime, CLOCK_MONOTONIC};
  static const long sizes[] = {SIZES};
  const int count = sizeof sizes / sizeof *sizes;
  std::vector<void*> args;
  for (long size : sizes) {
    char* memory = (char*)aligned_alloc(128, (size + 127) / 128 * 128);
    memset(memory, 0, size);
    args.push_back(memory);
  }
  wolong_init(&host);
  long failed = 0;
  for (int call = 0; call < 3; call++) failed += wolong_run(args.data(), THREAD_COUNT, PATIENCE);
  printf("%ld of %d\\n", failed, count);
  return failed != 0;
}
"""


def run_under_thread_sanitizer(
    program: object, directory: Path, threads: int = 3, patience_us: int = 10**6
) -> subprocess.CompletedProcess:
    """Three launches of a program's kernel by a team of std::thread."""
    program = with_chosen_tiles(program, "portable", threads)
    source = emit_program(program, "portable", threads)
    tensors = [b for kind in (BufferKind.INPUT, BufferKind.OUTPUT) for b in program.buffers if b.kind is kind]
    assert program.arena is not None
    sizes = [program.arena.size, max(len(source.constants), 1), *(max(b.span_bytes, 1) for b in tensors)]
    text = DRIVER.replace("SIZES", ", ".join(map(str, sizes))).replace("THREAD_COUNT", str(threads))
    text = text.replace("PATIENCE", str(patience_us))
    (directory / "driver.cpp").write_text(text)
    (directory / "kernel.cpp").write_text(source.text)
    flags = [f for f in COMMON_FLAGS if f not in ("-shared", "-fno-exceptions", "-fno-rtti")]
    command = [*get_compiler().command, *flags, *isa_flags("portable"), "-g", "-fsanitize=thread", "-pthread"]
    command += ["driver.cpp", "kernel.cpp", "-o", "program"]
    subprocess.run(command, cwd=directory, check=True, timeout=120)
    return subprocess.run(["./program"], cwd=directory, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "recurrence", "embedding", "softmax", "random1"])
@pytest.mark.parametrize("patience_us", [10**6, 0])
def test_thread_sanitizer_finds_no_race(tmp_path, name, patience_us):
    done = run_under_thread_sanitizer(stacked()[name](), tmp_path, patience_us=patience_us)  # type: ignore[operator]
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_thread_sanitizer_sees_a_missing_barrier(tmp_path):
    """The test above can fail: without the barriers there are races."""
    from wolong_fx.ir.program import Stage

    program = TYPICAL["mlp"](rows=64, width=64)  # type: ignore[call-arg]
    body = tuple(replace(s, barrier=False) if isinstance(s, Stage) else s for s in program.body)
    done = run_under_thread_sanitizer(replace(program, body=body), tmp_path)
    assert done.returncode != 0 and "data race" in done.stderr, sys.platform
