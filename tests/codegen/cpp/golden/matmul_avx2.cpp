// ---- tile functions of 8 lanes

// matmul: i 4 x j 64, in blocks of 4 x 16
// from matmul
NOINLINE void tile0_4x2(f32* p0, f32* p1, f32* p2, i64 b1) {
  f32v a0 = broadcast(0.0f);
  f32v a1 = broadcast(0.0f);
  f32v a2 = broadcast(0.0f);
  f32v a3 = broadcast(0.0f);
  f32v a4 = broadcast(0.0f);
  f32v a5 = broadcast(0.0f);
  f32v a6 = broadcast(0.0f);
  f32v a7 = broadcast(0.0f);
  f32v a8 = broadcast(0.0f);
  f32v a9 = broadcast(0.0f);
  f32v a10 = broadcast(0.0f);
  f32v a11 = broadcast(0.0f);
  f32v a12 = broadcast(0.0f);
  f32v a13 = broadcast(0.0f);
  f32v a14 = broadcast(0.0f);
  f32v a15 = broadcast(0.0f);
  for (i64 k0 = 0; k0 < 16; k0++) {
    const f32 v16 = p0[k0 * 2];
    const f32v v17 = load(p1 + b1 * 16 + k0 * 128);
    a0 = a0 + broadcast(v16) * v17;
    const f32v v18 = load(p1 + b1 * 16 + k0 * 128 + 8);
    a1 = a1 + broadcast(v16) * v18;
    const f32 v19 = p0[k0 * 2 + 32];
    a2 = a2 + broadcast(v19) * v17;
    a3 = a3 + broadcast(v19) * v18;
    const f32 v20 = p0[k0 * 2 + 64];
    a4 = a4 + broadcast(v20) * v17;
    a5 = a5 + broadcast(v20) * v18;
    const f32 v21 = p0[k0 * 2 + 96];
    a6 = a6 + broadcast(v21) * v17;
    a7 = a7 + broadcast(v21) * v18;
    const f32 v22 = p0[k0 * 2 + 1];
    const f32v v23 = load(p1 + b1 * 16 + k0 * 128 + 64);
    a8 = a8 + broadcast(v22) * v23;
    const f32v v24 = load(p1 + b1 * 16 + k0 * 128 + 72);
    a9 = a9 + broadcast(v22) * v24;
    const f32 v25 = p0[k0 * 2 + 33];
    a10 = a10 + broadcast(v25) * v23;
    a11 = a11 + broadcast(v25) * v24;
    const f32 v26 = p0[k0 * 2 + 65];
    a12 = a12 + broadcast(v26) * v23;
    a13 = a13 + broadcast(v26) * v24;
    const f32 v27 = p0[k0 * 2 + 97];
    a14 = a14 + broadcast(v27) * v23;
    a15 = a15 + broadcast(v27) * v24;
  }
  const f32v r28 = (a0 + a8);
  const f32v r29 = (a1 + a9);
  const f32v r30 = (a2 + a10);
  const f32v r31 = (a3 + a11);
  const f32v r32 = (a4 + a12);
  const f32v r33 = (a5 + a13);
  const f32v r34 = (a6 + a14);
  const f32v r35 = (a7 + a15);
  store(p2 + b1 * 16, r28);
  store(p2 + b1 * 16 + 8, r29);
  store(p2 + b1 * 16 + 64, r30);
  store(p2 + b1 * 16 + 72, r31);
  store(p2 + b1 * 16 + 128, r32);
  store(p2 + b1 * 16 + 136, r33);
  store(p2 + b1 * 16 + 192, r34);
  store(p2 + b1 * 16 + 200, r35);
}
NOINLINE void tile0(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  f32* const p2 = (f32*)(args[bind[4]] + bind[5]);
  for (i64 b = first; b < last; b++) {
    const i64 n0 = 4;
    const i64 b1 = b;
    const i64 n1 = 16;
    tile0_4x2(p0, p1, p2, b1);
  }
}
}

// A run: consecutive virtual blocks of one operator. Those of thread t in stage s begin at
// STARTS[s * THREADS + t]; a run's pointers are pairs (argument, byte offset) in BINDINGS.
typedef void (*TileFunction)(char* const*, const i64*, const i64*, i64, i64);
struct Run { i32 function, bindings; i64 first, last; };
static const TileFunction FUNCTIONS[] = {lanes8::tile0};
static const Run RUNS[] = {{0, 0, 0, 4}};
static const i32 STARTS[] = {0, 1, 1};
static const i64 BINDINGS[] = {2, 0, 3, 0, 4, 0};
static const bool BARRIERS[] = {1};

static void run_program(Worker* w) {
  (void)w;
  run_stages(w, 0, 1);
}

