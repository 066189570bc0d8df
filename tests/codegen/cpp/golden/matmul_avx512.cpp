// ---- tile functions of 16 lanes

// matmul: i 4 x j 64, in blocks of 4 x 64
// from matmul
NOINLINE void tile0_4x4(f32* p0, f32* p1, f32* p2) {
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
  for (i64 k0 = 0; k0 < 32; k0++) {
    const f32 v16 = p0[k0];
    const f32v v17 = load(p1 + k0 * 64);
    a0 = a0 + broadcast(v16) * v17;
    const f32v v18 = load(p1 + k0 * 64 + 16);
    a1 = a1 + broadcast(v16) * v18;
    const f32v v19 = load(p1 + k0 * 64 + 32);
    a2 = a2 + broadcast(v16) * v19;
    const f32v v20 = load(p1 + k0 * 64 + 48);
    a3 = a3 + broadcast(v16) * v20;
    const f32 v21 = p0[k0 + 32];
    a4 = a4 + broadcast(v21) * v17;
    a5 = a5 + broadcast(v21) * v18;
    a6 = a6 + broadcast(v21) * v19;
    a7 = a7 + broadcast(v21) * v20;
    const f32 v22 = p0[k0 + 64];
    a8 = a8 + broadcast(v22) * v17;
    a9 = a9 + broadcast(v22) * v18;
    a10 = a10 + broadcast(v22) * v19;
    a11 = a11 + broadcast(v22) * v20;
    const f32 v23 = p0[k0 + 96];
    a12 = a12 + broadcast(v23) * v17;
    a13 = a13 + broadcast(v23) * v18;
    a14 = a14 + broadcast(v23) * v19;
    a15 = a15 + broadcast(v23) * v20;
  }
  store(p2, a0);
  store(p2 + 16, a1);
  store(p2 + 32, a2);
  store(p2 + 48, a3);
  store(p2 + 64, a4);
  store(p2 + 80, a5);
  store(p2 + 96, a6);
  store(p2 + 112, a7);
  store(p2 + 128, a8);
  store(p2 + 144, a9);
  store(p2 + 160, a10);
  store(p2 + 176, a11);
  store(p2 + 192, a12);
  store(p2 + 208, a13);
  store(p2 + 224, a14);
  store(p2 + 240, a15);
}
NOINLINE void tile0(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  f32* const p2 = (f32*)(args[bind[4]] + bind[5]);
  for (i64 b = first; b < last; b++) {
    const i64 n0 = 4;
    const i64 n1 = 64;
    tile0_4x4(p0, p1, p2);
  }
}
}

// A run: consecutive virtual blocks of one operator. Those of thread t in stage s begin at
// STARTS[s * THREADS + t]; a run's pointers are pairs (argument, byte offset) in BINDINGS.
typedef void (*TileFunction)(char* const*, const i64*, const i64*, i64, i64);
struct Run { i32 function, bindings; i64 first, last; };
static const TileFunction FUNCTIONS[] = {lanes16::tile0};
static const Run RUNS[] = {{0, 0, 0, 1}};
static const i32 STARTS[] = {0, 1, 1};
static const i64 BINDINGS[] = {2, 0, 3, 0, 4, 0};
static const bool BARRIERS[] = {1};

static void run_program(Worker* w) {
  (void)w;
  run_stages(w, 0, 1);
}

