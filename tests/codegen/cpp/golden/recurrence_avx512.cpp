// ---- tile functions of 16 lanes

// start: j 8, in blocks of 8
// from start
NOINLINE void tile0(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  for (i64 b = first; b < last; b++) {
    const i64 n0 = 8;
    store(p0, broadcast(0.0f), n0);
    store(p1, broadcast(1.0f), n0);
  }
}

// cell: j 8, in blocks of 8
// from cell
NOINLINE void tile1_1x1_ragged(f32* p0, f32* p1, f32* p2, f32* p3, f32* p4, i64 t0, i64 n0) {
  const f32v v0 = load(p0 + t0 * 8, n0);
  f32v a1 = broadcast(0.0f);
  f32v a2 = broadcast(0.0f);
  f32v a3 = broadcast(0.0f);
  f32v a4 = broadcast(0.0f);
  for (i64 k0 = 0; k0 < 2; k0++) {
    const f32 v5 = p1[(t0 % 2) * 8 + k0 * 4];
    const f32v v6 = load(p2 + k0 * 32, n0);
    a1 = a1 + broadcast(v5) * v6;
    const f32 v7 = p1[(t0 % 2) * 8 + k0 * 4 + 1];
    const f32v v8 = load(p2 + k0 * 32 + 8, n0);
    a2 = a2 + broadcast(v7) * v8;
    const f32 v9 = p1[(t0 % 2) * 8 + k0 * 4 + 2];
    const f32v v10 = load(p2 + k0 * 32 + 16, n0);
    a3 = a3 + broadcast(v9) * v10;
    const f32 v11 = p1[(t0 % 2) * 8 + k0 * 4 + 3];
    const f32v v12 = load(p2 + k0 * 32 + 24, n0);
    a4 = a4 + broadcast(v11) * v12;
  }
  const f32v r13 = ((a1 + a2) + (a3 + a4));
  const f32v v14 = v0 + r13;
  const f32v v15 = tanh_(v14);
  const f32v v16 = load(p3, n0);
  const f32v v17 = v15 + v16;
  const f32v v18 = v16 * broadcast(0.5f);
  const f32v v19 = v18 + v17;
  store(p1 + ((t0 + 1) % 2) * 8, v17, n0);
  store(p3, v19, n0);
  store(p4 + t0 * 8, v17, n0);
}
NOINLINE void tile1(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  f32* const p2 = (f32*)(args[bind[4]] + bind[5]);
  f32* const p3 = (f32*)(args[bind[6]] + bind[7]);
  f32* const p4 = (f32*)(args[bind[8]] + bind[9]);
  const i64 t0 = loop[0];
  for (i64 b = first; b < last; b++) {
    const i64 n0 = 8;
    tile1_1x1_ragged(p0, p1, p2, p3, p4, t0, n0);
  }
}
}

// A run: consecutive virtual blocks of one operator. Those of thread t in stage s begin at
// STARTS[s * THREADS + t]; a run's pointers are pairs (argument, byte offset) in BINDINGS.
typedef void (*TileFunction)(char* const*, const i64*, const i64*, i64, i64);
struct Run { i32 function, bindings; i64 first, last; };
static const TileFunction FUNCTIONS[] = {lanes16::tile0, lanes16::tile1};
static const Run RUNS[] = {{0, 0, 0, 1}, {1, 4, 0, 1}};
static const i32 STARTS[] = {0, 1, 1, 2, 2};
static const i64 BINDINGS[] = {0, 4096, 0, 4160, 2, 0, 0, 4096, 3, 0, 0, 4160, 4, 0};
static const bool BARRIERS[] = {1, 1};

static void run_program(Worker* w) {
  (void)w;
  run_stages(w, 0, 1);
  for (w->loop[0] = 0; w->loop[0] < 5; w->loop[0]++) {  // t
    run_stages(w, 1, 2);
  }
}

