// ---- tile functions of 16 lanes

// look_up: n 9 x j 6, in blocks of 9 x 6
// from look_up
NOINLINE void tile0(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  i64* const p0 = (i64*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  f32* const p2 = (f32*)(args[bind[4]] + bind[5]);
  i64* const failure = (i64*)(args[0] + FAILURE);
  for (i64 b = first; b < last; b++) {
    const i64 n1 = 6;
    const i64 n0 = 9;
    for (i64 x0 = 0; x0 < n0; x0++) {
      const i64 v0 = p0[x0];
      const bool v1 = is_within(v0, 4, failure, 1);
      const f32v v2 = v1 ? load(p1 + v0 * 6, n1) : (f32v)(broadcast(0.0f));
      store(p2 + x0 * 6, v2, n1);
    }
  }
}

// zero: r 4 x j 6, in blocks of 4 x 6
// from zero
NOINLINE void tile1(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  for (i64 b = first; b < last; b++) {
    const i64 n1 = 6;
    const i64 n0 = 4;
    for (i64 x0 = 0; x0 < n0; x0++) {
      store(p0 + x0 * 6, broadcast(0.0f), n1);
    }
  }
}

// scatter: n 9 x j 6, in blocks of 9 x 6
// from scatter
NOINLINE void tile2(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  i64* const p1 = (i64*)(args[bind[2]] + bind[3]);
  f32* const p2 = (f32*)(args[bind[4]] + bind[5]);
  i64* const failure = (i64*)(args[0] + FAILURE);
  for (i64 b = first; b < last; b++) {
    const i64 n1 = 6;
    const i64 n0 = 9;
    for (i64 x0 = 0; x0 < n0; x0++) {
      const f32v v0 = load(p0 + x0 * 6, n1);
      const i64 v1 = p1[x0];
      const bool v2 = is_within(v1, 4, failure, 2);
      const f32v old3 = v2 ? load(p2 + v1 * 6, n1) : (f32v)(broadcast(0.0f));
      const f32v new4 = old3 + v0;
      if (v2) store(p2 + v1 * 6, new4, n1);
    }
  }
}
}

// A run: consecutive virtual blocks of one operator. Those of thread t in stage s begin at
// STARTS[s * THREADS + t]; a run's pointers are pairs (argument, byte offset) in BINDINGS.
typedef void (*TileFunction)(char* const*, const i64*, const i64*, i64, i64);
struct Run { i32 function, bindings; i64 first, last; };
static const TileFunction FUNCTIONS[] = {lanes16::tile0, lanes16::tile1, lanes16::tile2};
static const Run RUNS[] = {{0, 0, 0, 1}, {1, 6, 0, 1}, {2, 8, 0, 1}};
static const i32 STARTS[] = {0, 2, 2, 3, 3};
static const i64 BINDINGS[] = {3, 0, 2, 0, 4, 0, 5, 0, 4, 0, 3, 0, 5, 0};
static const bool BARRIERS[] = {1, 1};

static void run_program(Worker* w) {
  (void)w;
  run_stages(w, 0, 2);
}

