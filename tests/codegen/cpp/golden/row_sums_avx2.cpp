// ---- tile functions of 8 lanes

// row_sums: i 40, in blocks of 8
// from row_sums
NOINLINE void tile0(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  for (i64 b = first; b < last; b++) {
    const i64 b0 = b;
    const i64 n0 = 8;
    f32v part0[W] = {};
    {
      f32v a1 = broadcast(0.0f);
      f32v a2 = broadcast(0.0f);
      f32v a3 = broadcast(0.0f);
      f32v a4 = broadcast(0.0f);
      f32v a5 = broadcast(0.0f);
      f32v a6 = broadcast(0.0f);
      f32v a7 = broadcast(0.0f);
      f32v a8 = broadcast(0.0f);
      for (i64 k0 = 0; k0 < 6; k0++) {
        const f32v v9 = load(p0 + b0 * 400 + k0 * 8);
        a1 = a1 + v9;
        const f32v v10 = load(p0 + b0 * 400 + k0 * 8 + 50);
        a2 = a2 + v10;
        const f32v v11 = load(p0 + b0 * 400 + k0 * 8 + 100);
        a3 = a3 + v11;
        const f32v v12 = load(p0 + b0 * 400 + k0 * 8 + 150);
        a4 = a4 + v12;
        const f32v v13 = load(p0 + b0 * 400 + k0 * 8 + 200);
        a5 = a5 + v13;
        const f32v v14 = load(p0 + b0 * 400 + k0 * 8 + 250);
        a6 = a6 + v14;
        const f32v v15 = load(p0 + b0 * 400 + k0 * 8 + 300);
        a7 = a7 + v15;
        const f32v v16 = load(p0 + b0 * 400 + k0 * 8 + 350);
        a8 = a8 + v16;
      }
      {
        const f32v v17 = load(p0 + b0 * 400 + 48, 2);
        a1 = a1 + select(first_lanes(2), v17, broadcast(0.0f));
        const f32v v18 = load(p0 + b0 * 400 + 98, 2);
        a2 = a2 + select(first_lanes(2), v18, broadcast(0.0f));
        const f32v v19 = load(p0 + b0 * 400 + 148, 2);
        a3 = a3 + select(first_lanes(2), v19, broadcast(0.0f));
        const f32v v20 = load(p0 + b0 * 400 + 198, 2);
        a4 = a4 + select(first_lanes(2), v20, broadcast(0.0f));
        const f32v v21 = load(p0 + b0 * 400 + 248, 2);
        a5 = a5 + select(first_lanes(2), v21, broadcast(0.0f));
        const f32v v22 = load(p0 + b0 * 400 + 298, 2);
        a6 = a6 + select(first_lanes(2), v22, broadcast(0.0f));
        const f32v v23 = load(p0 + b0 * 400 + 348, 2);
        a7 = a7 + select(first_lanes(2), v23, broadcast(0.0f));
        const f32v v24 = load(p0 + b0 * 400 + 398, 2);
        a8 = a8 + select(first_lanes(2), v24, broadcast(0.0f));
      }
      part0[0] = a1;
      part0[1] = a2;
      part0[2] = a3;
      part0[3] = a4;
      part0[4] = a5;
      part0[5] = a6;
      part0[6] = a7;
      part0[7] = a8;
    }
    const f32v r25 = sum_each(part0);
    store(p1 + b0 * 8, r25);
  }
}
}

// A run: consecutive virtual blocks of one operator. Those of thread t in stage s begin at
// STARTS[s * THREADS + t]; a run's pointers are pairs (argument, byte offset) in BINDINGS.
typedef void (*TileFunction)(char* const*, const i64*, const i64*, i64, i64);
struct Run { i32 function, bindings; i64 first, last; };
static const TileFunction FUNCTIONS[] = {lanes8::tile0};
static const Run RUNS[] = {{0, 0, 0, 2}, {0, 0, 2, 5}};
static const i32 STARTS[] = {0, 1, 2};
static const i64 BINDINGS[] = {2, 0, 3, 0};
static const bool BARRIERS[] = {1};

static void run_program(Worker* w) {
  (void)w;
  run_stages(w, 0, 1);
}

