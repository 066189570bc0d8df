"""Kernels written by hand that follow the ABI: the runtime is tested on them, whatever the emitter does."""

from __future__ import annotations

import torch

from wolong_fx.runtime import KernelImage, TensorSpec

PRELUDE = """
extern "C" {
  typedef void (*Body)(void*);
  struct WolongHost {
    void (*parallel)(Body, void*, unsigned threads, unsigned flags);
    int (*thread_num)();
    int (*yield)();
    int (*clock)(int, void*);
    int monotonic;
  };
  extern const int wolong_abi;
  const int wolong_abi = 2;
}
static const WolongHost* host;
extern "C" void wolong_init(const WolongHost* given) { host = given; }
// Flags lie 128 bytes apart; the epoch goes on from launch to launch, because nobody zeroes the header again.
struct Header { struct { long value, pad[15]; } flag[8]; long epoch; };
static void barrier(Header* header, int me, int team, long epoch) {
  __atomic_store_n(&header->flag[me].value, epoch, __ATOMIC_RELEASE);
  for (int other = 0; other < team; other++)
    for (int spins = 0; __atomic_load_n(&header->flag[other].value, __ATOMIC_ACQUIRE) < epoch;)
      if (++spins > 2000) host->yield();
}
struct Launch { void** args; int team; };
"""

ADD_THEN_REVERSE = """
// out[i] = (a + b)[n - 1 - i]: the second stage reads what other threads wrote in the first.
static void body(void* data) {
  const Launch* launch = (const Launch*)data;
  void** args = launch->args;
  const int team = launch->team, me = team > 1 ? host->thread_num() : 0;
  Header* header = (Header*)args[0];
  float* sum = (float*)((char*)args[0] + 4096);
  const float *a = (const float*)args[2], *b = (const float*)args[3];
  float* out = (float*)args[4];
  const long from = N * me / team, to = N * (me + 1) / team, epoch = header->epoch + 1;
  for (long i = from; i < to; i++) sum[i] = a[i] + b[i];
  if (team > 1) barrier(header, me, team, epoch);
  for (long i = from; i < to; i++) out[i] = sum[N - 1 - i];
  if (team > 1) barrier(header, me, team, epoch + 1);
  if (me == 0 && team > 1) header->epoch = epoch + 1;
}
extern "C" long wolong_run(void** args, int threads, int) {
  Launch launch = {args, threads};
  if (threads > 1) host->parallel(body, &launch, threads, 0); else body(&launch);
  return 0;
}
"""

TABLE_LOOKUP = """
// out[i] = table[index[i]], the table being a constant; a failed check says which.
extern "C" long wolong_run(void** args, int, int) {
  const float* table = (const float*)args[1];
  const long* index = (const long*)args[2];
  float* out = (float*)args[3];
  for (long i = 0; i < N; i++) {
    if (index[i] < 0) return 1;
    if (index[i] >= ROWS) return 2;
    out[i] = table[index[i]];
  }
  return 0;
}
"""

REPORT_TEAM = """
// out = {team size asked for, threads that took part}.
static long took_part;
static void body(void*) { __atomic_add_fetch(&took_part, 1, __ATOMIC_SEQ_CST); }
extern "C" long wolong_run(void** args, int threads, int) {
  long* out = (long*)args[2];
  took_part = 0;
  if (threads > 1) host->parallel(body, 0, threads, 0); else body(0);
  out[0] = threads; out[1] = took_part;
  return 0;
}
"""

EIGHT_TENSORS = """
// Two outputs, each the sum of three inputs; a team splits nothing and meets once.
static void body(void* data) {
  const Launch* launch = (const Launch*)data;
  const int team = launch->team, me = team > 1 ? host->thread_num() : 0;
  Header* header = (Header*)launch->args[0];
  const long epoch = header->epoch + 1;
  float** tensors = (float**)launch->args + 2;
  if (me == 0)
    for (int out = 0; out < 2; out++)
      for (long i = 0; i < N; i++)
        tensors[6 + out][i] = tensors[3 * out][i] + tensors[3 * out + 1][i] + tensors[3 * out + 2][i];
  if (team > 1) {
    barrier(header, me, team, epoch);
    if (me == 0) header->epoch = epoch;
  }
}
extern "C" long wolong_run(void** args, int threads, int) {
  Launch launch = {args, threads};
  if (threads > 1) host->parallel(body, &launch, threads, 0); else body(&launch);
  return 0;
}
// For benchmarks: what the kernel itself takes, without what calling it from Python takes.
extern "C" void wolong_repeat(void** args, int threads, long times) {
  for (long i = 0; i < times; i++) wolong_run(args, threads, 0);
}
"""


def spec(*shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    """A contiguous tensor of this shape."""
    return TensorSpec.of(torch.empty(shape, dtype=dtype))


def add_then_reverse(n: int = 1000, threads: int = 2) -> KernelImage:
    """Two stages with a barrier between them: the sum of two vectors, then its reverse."""
    source = PRELUDE + f"static const long N = {n};" + ADD_THEN_REVERSE
    vector = spec(n)
    return KernelImage(
        source, (), 4096 + 4 * n, b"", (vector, vector), (vector,), threads, name="add_then_reverse"
    )


def table_lookup(n: int, table: torch.Tensor) -> KernelImage:
    """Elements of a constant table at `n` given indices, which are checked."""
    sizes = f"static const long N = {n}, ROWS = {table.numel()};"
    return KernelImage(
        source=PRELUDE + sizes + TABLE_LOOKUP,
        flags=(),
        arena_bytes=4096,
        constants=table.numpy().tobytes(),
        inputs=(spec(n, dtype=torch.int64),),
        outputs=(spec(n),),
        checks=("index is negative", "index out of range in self"),
        name="table_lookup",
    )


def report_team(threads: int = 2) -> KernelImage:
    """Tells how many threads it was given, and how many came."""
    return KernelImage(
        PRELUDE + REPORT_TEAM, (), 4096, b"", (), (spec(2, dtype=torch.int64),), threads, name="report_team"
    )


def eight_tensors(n: int = 16, threads: int = 1) -> KernelImage:
    """Six inputs, two outputs: the call whose overhead is stated."""
    source, vector = PRELUDE + f"static const long N = {n};" + EIGHT_TENSORS, spec(n)
    return KernelImage(source, (), 4096, b"", (vector,) * 6, (vector,) * 2, threads, name="eight_tensors")
