// ---- tile functions of 16 lanes

// row_sums: i 40, in blocks of 16
// from row_sums
NOINLINE void tile0(char* const* args, const i64* bind, const i64* loop, i64 first, i64 last) {
  f32* const p0 = (f32*)(args[bind[0]] + bind[1]);
  f32* const p1 = (f32*)(args[bind[2]] + bind[3]);
  for (i64 b = first; b < last; b++) {
    const i64 b0 = b;
    const i64 n0 = at_most(16, 40 - b0 * 16);
    for (i64 u = 0; u < n0 / 16; u++) {
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
        f32v a9 = broadcast(0.0f);
        f32v a10 = broadcast(0.0f);
        f32v a11 = broadcast(0.0f);
        f32v a12 = broadcast(0.0f);
        f32v a13 = broadcast(0.0f);
        f32v a14 = broadcast(0.0f);
        f32v a15 = broadcast(0.0f);
        f32v a16 = broadcast(0.0f);
        for (i64 k0 = 0; k0 < 3; k0++) {
          const f32v v17 = load(p0 + b0 * 800 + k0 * 16);
          a1 = a1 + v17;
          const f32v v18 = load(p0 + b0 * 800 + k0 * 16 + 50);
          a2 = a2 + v18;
          const f32v v19 = load(p0 + b0 * 800 + k0 * 16 + 100);
          a3 = a3 + v19;
          const f32v v20 = load(p0 + b0 * 800 + k0 * 16 + 150);
          a4 = a4 + v20;
          const f32v v21 = load(p0 + b0 * 800 + k0 * 16 + 200);
          a5 = a5 + v21;
          const f32v v22 = load(p0 + b0 * 800 + k0 * 16 + 250);
          a6 = a6 + v22;
          const f32v v23 = load(p0 + b0 * 800 + k0 * 16 + 300);
          a7 = a7 + v23;
          const f32v v24 = load(p0 + b0 * 800 + k0 * 16 + 350);
          a8 = a8 + v24;
          const f32v v25 = load(p0 + b0 * 800 + k0 * 16 + 400);
          a9 = a9 + v25;
          const f32v v26 = load(p0 + b0 * 800 + k0 * 16 + 450);
          a10 = a10 + v26;
          const f32v v27 = load(p0 + b0 * 800 + k0 * 16 + 500);
          a11 = a11 + v27;
          const f32v v28 = load(p0 + b0 * 800 + k0 * 16 + 550);
          a12 = a12 + v28;
          const f32v v29 = load(p0 + b0 * 800 + k0 * 16 + 600);
          a13 = a13 + v29;
          const f32v v30 = load(p0 + b0 * 800 + k0 * 16 + 650);
          a14 = a14 + v30;
          const f32v v31 = load(p0 + b0 * 800 + k0 * 16 + 700);
          a15 = a15 + v31;
          const f32v v32 = load(p0 + b0 * 800 + k0 * 16 + 750);
          a16 = a16 + v32;
        }
        {
          const f32v v33 = load(p0 + b0 * 800 + 48, 2);
          a1 = a1 + select(first_lanes(2), v33, broadcast(0.0f));
          const f32v v34 = load(p0 + b0 * 800 + 98, 2);
          a2 = a2 + select(first_lanes(2), v34, broadcast(0.0f));
          const f32v v35 = load(p0 + b0 * 800 + 148, 2);
          a3 = a3 + select(first_lanes(2), v35, broadcast(0.0f));
          const f32v v36 = load(p0 + b0 * 800 + 198, 2);
          a4 = a4 + select(first_lanes(2), v36, broadcast(0.0f));
          const f32v v37 = load(p0 + b0 * 800 + 248, 2);
          a5 = a5 + select(first_lanes(2), v37, broadcast(0.0f));
          const f32v v38 = load(p0 + b0 * 800 + 298, 2);
          a6 = a6 + select(first_lanes(2), v38, broadcast(0.0f));
          const f32v v39 = load(p0 + b0 * 800 + 348, 2);
          a7 = a7 + select(first_lanes(2), v39, broadcast(0.0f));
          const f32v v40 = load(p0 + b0 * 800 + 398, 2);
          a8 = a8 + select(first_lanes(2), v40, broadcast(0.0f));
          const f32v v41 = load(p0 + b0 * 800 + 448, 2);
          a9 = a9 + select(first_lanes(2), v41, broadcast(0.0f));
          const f32v v42 = load(p0 + b0 * 800 + 498, 2);
          a10 = a10 + select(first_lanes(2), v42, broadcast(0.0f));
          const f32v v43 = load(p0 + b0 * 800 + 548, 2);
          a11 = a11 + select(first_lanes(2), v43, broadcast(0.0f));
          const f32v v44 = load(p0 + b0 * 800 + 598, 2);
          a12 = a12 + select(first_lanes(2), v44, broadcast(0.0f));
          const f32v v45 = load(p0 + b0 * 800 + 648, 2);
          a13 = a13 + select(first_lanes(2), v45, broadcast(0.0f));
          const f32v v46 = load(p0 + b0 * 800 + 698, 2);
          a14 = a14 + select(first_lanes(2), v46, broadcast(0.0f));
          const f32v v47 = load(p0 + b0 * 800 + 748, 2);
          a15 = a15 + select(first_lanes(2), v47, broadcast(0.0f));
          const f32v v48 = load(p0 + b0 * 800 + 798, 2);
          a16 = a16 + select(first_lanes(2), v48, broadcast(0.0f));
        }
        part0[0] = a1;
        part0[1] = a2;
        part0[2] = a3;
        part0[3] = a4;
        part0[4] = a5;
        part0[5] = a6;
        part0[6] = a7;
        part0[7] = a8;
        part0[8] = a9;
        part0[9] = a10;
        part0[10] = a11;
        part0[11] = a12;
        part0[12] = a13;
        part0[13] = a14;
        part0[14] = a15;
        part0[15] = a16;
      }
      const f32v r49 = sum_each(part0);
      store(p1 + b0 * 16, r49);
    }
    if (const i64 u = n0 / 16; u * 16 < n0) {
      f32v part50[W] = {};
      {
        const i64 c1 = at_most(1, n0 - 1);
        const i64 c2 = at_most(2, n0 - 1);
        const i64 c3 = at_most(3, n0 - 1);
        const i64 c4 = at_most(4, n0 - 1);
        const i64 c5 = at_most(5, n0 - 1);
        const i64 c6 = at_most(6, n0 - 1);
        const i64 c7 = at_most(7, n0 - 1);
        const i64 c8 = at_most(8, n0 - 1);
        const i64 c9 = at_most(9, n0 - 1);
        const i64 c10 = at_most(10, n0 - 1);
        const i64 c11 = at_most(11, n0 - 1);
        const i64 c12 = at_most(12, n0 - 1);
        const i64 c13 = at_most(13, n0 - 1);
        const i64 c14 = at_most(14, n0 - 1);
        const i64 c15 = at_most(15, n0 - 1);
        f32v a51 = broadcast(0.0f);
        f32v a52 = broadcast(0.0f);
        f32v a53 = broadcast(0.0f);
        f32v a54 = broadcast(0.0f);
        f32v a55 = broadcast(0.0f);
        f32v a56 = broadcast(0.0f);
        f32v a57 = broadcast(0.0f);
        f32v a58 = broadcast(0.0f);
        f32v a59 = broadcast(0.0f);
        f32v a60 = broadcast(0.0f);
        f32v a61 = broadcast(0.0f);
        f32v a62 = broadcast(0.0f);
        f32v a63 = broadcast(0.0f);
        f32v a64 = broadcast(0.0f);
        f32v a65 = broadcast(0.0f);
        f32v a66 = broadcast(0.0f);
        for (i64 k1 = 0; k1 < 3; k1++) {
          const f32v v67 = load(p0 + b0 * 800 + k1 * 16);
          a51 = a51 + v67;
          const f32v v68 = load(p0 + b0 * 800 + c1 * 50 + k1 * 16);
          a52 = a52 + v68;
          const f32v v69 = load(p0 + b0 * 800 + c2 * 50 + k1 * 16);
          a53 = a53 + v69;
          const f32v v70 = load(p0 + b0 * 800 + c3 * 50 + k1 * 16);
          a54 = a54 + v70;
          const f32v v71 = load(p0 + b0 * 800 + c4 * 50 + k1 * 16);
          a55 = a55 + v71;
          const f32v v72 = load(p0 + b0 * 800 + c5 * 50 + k1 * 16);
          a56 = a56 + v72;
          const f32v v73 = load(p0 + b0 * 800 + c6 * 50 + k1 * 16);
          a57 = a57 + v73;
          const f32v v74 = load(p0 + b0 * 800 + c7 * 50 + k1 * 16);
          a58 = a58 + v74;
          const f32v v75 = load(p0 + b0 * 800 + c8 * 50 + k1 * 16);
          a59 = a59 + v75;
          const f32v v76 = load(p0 + b0 * 800 + c9 * 50 + k1 * 16);
          a60 = a60 + v76;
          const f32v v77 = load(p0 + b0 * 800 + c10 * 50 + k1 * 16);
          a61 = a61 + v77;
          const f32v v78 = load(p0 + b0 * 800 + c11 * 50 + k1 * 16);
          a62 = a62 + v78;
          const f32v v79 = load(p0 + b0 * 800 + c12 * 50 + k1 * 16);
          a63 = a63 + v79;
          const f32v v80 = load(p0 + b0 * 800 + c13 * 50 + k1 * 16);
          a64 = a64 + v80;
          const f32v v81 = load(p0 + b0 * 800 + c14 * 50 + k1 * 16);
          a65 = a65 + v81;
          const f32v v82 = load(p0 + b0 * 800 + c15 * 50 + k1 * 16);
          a66 = a66 + v82;
        }
        {
          const f32v v83 = load(p0 + b0 * 800 + 48, 2);
          a51 = a51 + select(first_lanes(2), v83, broadcast(0.0f));
          const f32v v84 = load(p0 + b0 * 800 + c1 * 50 + 48, 2);
          a52 = a52 + select(first_lanes(2), v84, broadcast(0.0f));
          const f32v v85 = load(p0 + b0 * 800 + c2 * 50 + 48, 2);
          a53 = a53 + select(first_lanes(2), v85, broadcast(0.0f));
          const f32v v86 = load(p0 + b0 * 800 + c3 * 50 + 48, 2);
          a54 = a54 + select(first_lanes(2), v86, broadcast(0.0f));
          const f32v v87 = load(p0 + b0 * 800 + c4 * 50 + 48, 2);
          a55 = a55 + select(first_lanes(2), v87, broadcast(0.0f));
          const f32v v88 = load(p0 + b0 * 800 + c5 * 50 + 48, 2);
          a56 = a56 + select(first_lanes(2), v88, broadcast(0.0f));
          const f32v v89 = load(p0 + b0 * 800 + c6 * 50 + 48, 2);
          a57 = a57 + select(first_lanes(2), v89, broadcast(0.0f));
          const f32v v90 = load(p0 + b0 * 800 + c7 * 50 + 48, 2);
          a58 = a58 + select(first_lanes(2), v90, broadcast(0.0f));
          const f32v v91 = load(p0 + b0 * 800 + c8 * 50 + 48, 2);
          a59 = a59 + select(first_lanes(2), v91, broadcast(0.0f));
          const f32v v92 = load(p0 + b0 * 800 + c9 * 50 + 48, 2);
          a60 = a60 + select(first_lanes(2), v92, broadcast(0.0f));
          const f32v v93 = load(p0 + b0 * 800 + c10 * 50 + 48, 2);
          a61 = a61 + select(first_lanes(2), v93, broadcast(0.0f));
          const f32v v94 = load(p0 + b0 * 800 + c11 * 50 + 48, 2);
          a62 = a62 + select(first_lanes(2), v94, broadcast(0.0f));
          const f32v v95 = load(p0 + b0 * 800 + c12 * 50 + 48, 2);
          a63 = a63 + select(first_lanes(2), v95, broadcast(0.0f));
          const f32v v96 = load(p0 + b0 * 800 + c13 * 50 + 48, 2);
          a64 = a64 + select(first_lanes(2), v96, broadcast(0.0f));
          const f32v v97 = load(p0 + b0 * 800 + c14 * 50 + 48, 2);
          a65 = a65 + select(first_lanes(2), v97, broadcast(0.0f));
          const f32v v98 = load(p0 + b0 * 800 + c15 * 50 + 48, 2);
          a66 = a66 + select(first_lanes(2), v98, broadcast(0.0f));
        }
        part50[0] = a51;
        part50[1] = a52;
        part50[2] = a53;
        part50[3] = a54;
        part50[4] = a55;
        part50[5] = a56;
        part50[6] = a57;
        part50[7] = a58;
        part50[8] = a59;
        part50[9] = a60;
        part50[10] = a61;
        part50[11] = a62;
        part50[12] = a63;
        part50[13] = a64;
        part50[14] = a65;
        part50[15] = a66;
      }
      const f32v r99 = sum_each(part50);
      store(p1 + b0 * 16, r99, n0);
    }
  }
}
}

// A run: consecutive virtual blocks of one operator. Those of thread t in stage s begin at
// STARTS[s * THREADS + t]; a run's pointers are pairs (argument, byte offset) in BINDINGS.
typedef void (*TileFunction)(char* const*, const i64*, const i64*, i64, i64);
struct Run { i32 function, bindings; i64 first, last; };
static const TileFunction FUNCTIONS[] = {lanes16::tile0};
static const Run RUNS[] = {{0, 0, 0, 2}, {0, 0, 2, 3}};
static const i32 STARTS[] = {0, 1, 2};
static const i64 BINDINGS[] = {2, 0, 3, 0};
static const bool BARRIERS[] = {1};

static void run_program(Worker* w) {
  (void)w;
  run_stages(w, 0, 1);
}

