// ---- tile functions of 16 lanes

// write0: i 6 x j 3, in blocks of 6 x 3
// from write0
NOINLINE void tile0(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  for (i64 b = first; b < last; b++) {
    const i64 n1 = 3;
    const i64 n0 = 6;
    for (i64 x0 = 0; x0 < n0; x0++) {
      const f32v v0 = load(p0 + x0 * 3, n1);
      const f32v v1 = tanh_(v0);
      store(p1 + x0 * 12, v1, n1);
    }
  }
}

// write1: i 6 x j 4, in blocks of 6 x 4
// from write1
NOINLINE void tile1(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  for (i64 b = first; b < last; b++) {
    const i64 n1 = 4;
    const i64 n0 = 6;
    for (i64 x0 = 0; x0 < n0; x0++) {
      const f32v v0 = load(p0 + x0 * 4, n1);
      const f32v v1 = tanh_(v0);
      store(p1 + x0 * 12, v1, n1);
    }
  }
}

// write2: i 6 x j 5, in blocks of 6 x 5
// from write2
NOINLINE void tile2(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  for (i64 b = first; b < last; b++) {
    const i64 n1 = 5;
    const i64 n0 = 6;
    for (i64 x0 = 0; x0 < n0; x0++) {
      const f32v v0 = load(p0 + x0 * 5, n1);
      const f32v v1 = tanh_(v0);
      store(p1 + x0 * 12, v1, n1);
    }
  }
}

// read: i 6 x j 12, in blocks of 6 x 12
// from read
NOINLINE void tile3(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  f32* const p2 = (f32*)(args[bind[4]] + bind[5]);
  for (i64 b = first; b < last; b++) {
    const i64 n1 = 12;
    const i64 n0 = 6;
    for (i64 x0 = 0; x0 < n0; x0++) {
      const f32v v0 = load(p0 + x0 * 12, n1);
      const f32v v1 = load(p1 + -x0 * 12, n1);
      const f32v v2 = v0 + v1;
      store(p2 + x0 * 12, v2, n1);
    }
  }
}
}

// A run: consecutive virtual blocks of one operator. Those of thread t in stage s begin at
// STARTS[s * THREADS + t]; a run's pointers are pairs (argument, byte offset) in BINDINGS.
typedef void (*TileFunction)(char* const*, const i64*, const i64*, i64, i64);
struct Run { i32 function, bindings; i64 first, last; };
static const TileFunction FUNCTIONS[] = {lanes16::tile0, lanes16::tile1, lanes16::tile2, lanes16::tile3};
static const Run RUNS[] = {{0, 0, 0, 1}, {1, 4, 0, 1}, {2, 8, 0, 1}, {3, 12, 0, 1}};
static const i32 STARTS[] = {0, 3, 3, 4, 4};
static const i64 BINDINGS[] = {2, 0, 0, 4096, 3, 0, 0, 4108, 4, 0, 0, 4124, 0, 4096, 0, 4336, 5, 0};
static const bool BARRIERS[] = {1, 1};

static void run_program(Worker* w) {
  (void)w;
  run_stages(w, 0, 2);
}

