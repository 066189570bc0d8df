// What work costs on this machine: each figure is the least of many short runs, since other processes only ever
// add to them. Included by nothing; calibrate.py builds it with the flags that kernels are built with.
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef long i64;
#if defined __AVX512F__
enum { LANES = 16 };
#elif defined __AVX2__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), may_alias));
#define NOINLINE static __attribute__((noinline))

struct Host {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_num)(void);
  int (*yield)(void);
};

// In the order of FIGURES in calibrate.py.
struct Figures {
  double cycle, fma_rate, special_rate, l1_rate, l2_rate, l3_rate, dram_rate, team_l3_rate, team_dram_rate, block,
      barrier, handover_rate, region;
};

static volatile float sink;
static volatile i64 sink_of_numbers;

static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// The least time of `work`, run up to `most` times within `limit` seconds.
template <class Work> static double least(int most, double limit, Work work) {
  double best = 1e9;
  const double end = now() + limit;
  for (int i = 0; i < most && (i < 3 || now() < end); i++) {
    const double start = now();
    work();
    const double took = now() - start;
    if (took < best) best = took;
  }
  return best;
}

// Additions that wait for each other: one a cycle.
NOINLINE void wait_cycles(i64 count) {
  i64 x = 1;
  for (i64 i = 0; i < count; i += 16) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
      x += i;
      __asm__ volatile("" : "+r"(x));
    }
  }
  sink_of_numbers = x;
}

NOINLINE void multiply_add(i64 rounds) {
  Vector sum[12] = {}, factor = {}, term = {};
  __asm__ volatile("" : "+m"(factor), "+m"(term));
  for (i64 i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int c = 0; c < 12; c++) sum[c] = sum[c] * factor + term;
  for (int c = 1; c < 12; c++) sum[0] += sum[c];
  sink = sum[0][0];
}

// A polynomial, a power of two and a division: what the exp, tanh and sigmoid of kernels are made of.
NOINLINE void special_functions(const float* x, i64 vectors) {
  Vector sum = {};
  for (i64 i = 0; i < vectors; i++) {
    const Vector v = ((const Vector*)x)[i % 64];
    Vector whole = v + 12582912.0f, rest = v - (whole - 12582912.0f), p = rest * 1.9e-4f + 1.4e-3f;
    p = p * rest + 8.4e-3f;
    p = p * rest + 4.2e-2f;
    p = p * rest + 1.7e-1f;
    p = p * rest + 0.5f;
    p = p * rest + 1.0f;
    sum += 1.0f / (p * (whole + rest) + 1.0f);
  }
  sink = sum[0];
}

NOINLINE void read_bytes(const char* from, i64 bytes) {
  Vector sum[8] = {};
  const Vector* v = (const Vector*)from;
  for (i64 i = 0; i + 8 <= (i64)(bytes / sizeof(Vector)); i += 8)
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) sum[c] += v[i + c];
  for (int c = 1; c < 8; c++) sum[0] += sum[c];
  sink = sum[0][0];
}

NOINLINE void one_block(const i64* bindings, i64 block) {
  const i64 row = block / bindings[0], column = block % bindings[0];
  sink_of_numbers = row * bindings[1] + column;
}
static void (*volatile tile_function)(const i64*, i64) = one_block;

enum { LINES = 64 };  // that a thread hands to its neighbour, where that is measured
struct Team {
  const Host* host;
  int threads;
  char* memory;
  i64 bytes, rounds, lines;
};

static void nothing(void*) {}

static void read_share(void* given) {
  const Team* team = (const Team*)given;
  const i64 share = team->bytes / team->threads & ~(i64)4095;
  read_bytes(team->memory + share * team->host->thread_num(), share);
}

// Barriers as kernels have them; after each, every thread reads the lines that its neighbour wrote before.
static void meet(void* given) {
  const Team* team = (const Team*)given;
  const int number = team->host->thread_num();
  i64* const flags = (i64*)team->memory;
  i64* const mine = flags + 16 * team->threads + number * LINES * 8;
  volatile i64* const others = flags + 16 * team->threads + (number + 1) % team->threads * LINES * 8;
  i64 sum = 0;
  for (i64 round = 1; round <= team->rounds; round++) {
    for (i64 line = 0; line < team->lines; line++) mine[8 * line] = round;
    __atomic_store_n(flags + 16 * number, round, __ATOMIC_RELEASE);
    for (int t = 0; t < team->threads; t++)
      for (int spins = 0; __atomic_load_n(flags + 16 * t, __ATOMIC_ACQUIRE) < round;)
        if (++spins > 2000) team->host->yield();
    for (i64 line = 0; line < team->lines; line++) sum += others[8 * line];
  }
  sink_of_numbers = sum;
}

static double read_rate(const char* memory, i64 bytes) {
  const i64 times = bytes < 1 << 18 ? (1 << 18) / bytes : 1;
  const double took = least(40, 0.06, [&] {
    for (i64 i = 0; i < times; i++) read_bytes(memory, bytes);
  });
  return times * bytes / took;
}

static void measure_core(Figures* out, const char* memory, const i64* cache_bytes) {
  out->cycle = least(40, 0.05, [] { wait_cycles(64000); }) / 64000;
  out->fma_rate = 12.0 * LANES * 4000 / least(40, 0.05, [] { multiply_add(4000); });
  out->special_rate = 4000 / least(40, 0.05, [&] { special_functions((const float*)memory, 4000); });
  out->l1_rate = read_rate(memory, cache_bytes[0] / 2);
  out->l2_rate = read_rate(memory, cache_bytes[1] / 2);
  out->l3_rate = read_rate(memory, cache_bytes[2]);
  out->dram_rate = read_rate(memory, cache_bytes[3]);
  const i64 bindings[2] = {7, 3};
  out->block = least(40, 0.05, [&] {
                 for (i64 i = 0; i < 2000; i++) tile_function(bindings, i);
               }) / 2000;
}

static double seconds_of_meeting(Team team, i64 lines) {
  team.rounds = 200;
  team.lines = lines;
  double best = 1e9;
  for (int i = 0; i < 40; i++) {
    memset(team.memory, 0, (128 + 64 * LINES) * team.threads);
    const double took = least(1, 0.0, [&] { team.host->parallel(meet, &team, team.threads, 0); }) / team.rounds;
    if (took < best) best = took;
  }
  return best;
}

static void measure_team(Figures* out, Team team, const i64* cache_bytes) {
  const Host* host = team.host;
  const auto run = [&](void (*work)(void*)) { host->parallel(work, &team, team.threads, 0); };
  run(nothing);
  out->region = least(400, 0.1, [&] { run(nothing); });
  out->barrier = seconds_of_meeting(team, 1);
  out->handover_rate = (LINES - 1) * 64 / (seconds_of_meeting(team, LINES) - out->barrier);
  team.bytes = cache_bytes[2] * team.threads;
  if (team.bytes > cache_bytes[3]) team.bytes = cache_bytes[3];
  out->team_l3_rate = team.bytes / least(20, 0.1, [&] { run(read_share); });
  team.bytes = cache_bytes[3];
  out->team_dram_rate = team.bytes / least(10, 0.15, [&] { run(read_share); });
}

// cache_bytes: of the first two levels; then bytes that are read to measure the third, and memory behind it.
extern "C" int wolong_calibrate(const Host* host, int threads, const i64* cache_bytes, Figures* out) {
  char* const memory = (char*)aligned_alloc(4096, cache_bytes[3]);
  if (!memory) return 1;
  memset(memory, 0, cache_bytes[3]);
  measure_core(out, memory, cache_bytes);
  if (threads > 1 && host->parallel) measure_team(out, {host, threads, memory, 0, 0, 0}, cache_bytes);
  free(memory);
  return 0;
}
