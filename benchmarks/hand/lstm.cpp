// An LSTM written by hand for one machine (AVX-512) and one set of sizes: what a generated kernel is held against.
//
//   g++ -O3 -march=native -fopenmp -shared -fPIC -DHIDDEN=256 -DBATCH=1 -DSTEPS=80 lstm.cpp
//
// Layout: hidden units in blocks of 16, a vector each. `packed` holds for every block its columns of the four gates
// side by side: [block][k][gate][16], so that one pass over k streams them. The input projections of all steps come
// first, as one product; then the recurrence, each thread owning some blocks, one barrier a step.
#include <immintrin.h>
#include <omp.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

typedef __m512 Vector;
constexpr int LANES = 16, GATES = 4, WIDE = GATES * LANES;
constexpr int BLOCKS = HIDDEN / LANES, MOST_ROWS = 6, MOST_THREADS = 64;
static_assert(HIDDEN % LANES == 0, "blocks of 16 hidden units");

// ---- elementwise functions

static inline Vector exponential(Vector x) {  // Cephes' expf: 2 units in the last place
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.3f)), _mm512_set1_ps(88.3f));
  const Vector n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896f)), 0);
  Vector r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  Vector p = _mm512_set1_ps(1.9875691500e-4f);
  constexpr float COEFFICIENTS[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                                    5.0000001201e-1f};
#pragma GCC unroll 5
  for (float c : COEFFICIENTS)
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.f)));
  return _mm512_scalef_ps(p, n);
}

static inline Vector reciprocal(Vector x) {  // 14 bits from the table, 28 after one Newton step
  const Vector y = _mm512_rcp14_ps(x);
  return _mm512_fmadd_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(1.f)), y);
}

static inline Vector sigmoid(Vector x) {
  const Vector one = _mm512_set1_ps(1.f);
  return reciprocal(_mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

static inline Vector hyperbolic_tangent(Vector x) {
  const Vector one = _mm512_set1_ps(1.f);
  const Vector e = exponential(_mm512_min_ps(_mm512_add_ps(x, x), _mm512_set1_ps(40.f)));
  return _mm512_fnmadd_ps(_mm512_set1_ps(2.f), reciprocal(_mm512_add_ps(e, one)), one);
}

// ---- the micro-kernel: acc[row][gate] += A[row][k] * B[k][gate]

// Few rows leave too few independent sums to hide the latency of an FMA: then k is walked in SPLIT streams.
template <int ROWS>
static inline __attribute__((always_inline)) void multiply(const float* A, const float* B, Vector acc[ROWS][GATES]) {
  constexpr int SPLIT = ROWS == 1 ? 4 : ROWS == 2 ? 2 : 1;
  Vector sum[SPLIT][ROWS][GATES];
#pragma GCC unroll 4
  for (int s = 0; s < SPLIT; s++)
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
      for (int g = 0; g < GATES; g++) sum[s][row][g] = s ? _mm512_setzero_ps() : acc[row][g];
  for (int k = 0; k < HIDDEN; k += SPLIT)
#pragma GCC unroll 4
    for (int s = 0; s < SPLIT; s++) {
      const float* columns = B + (size_t)(k + s) * WIDE;
      Vector b[GATES];
#pragma GCC unroll 4
      for (int g = 0; g < GATES; g++) b[g] = _mm512_load_ps(columns + g * LANES);
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; row++) {
        const Vector a = _mm512_set1_ps(A[row * HIDDEN + k + s]);
#pragma GCC unroll 4
        for (int g = 0; g < GATES; g++) sum[s][row][g] = _mm512_fmadd_ps(a, b[g], sum[s][row][g]);
      }
    }
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
    for (int g = 0; g < GATES; g++) {
      acc[row][g] = sum[0][row][g];
#pragma GCC unroll 4
      for (int s = 1; s < SPLIT; s++) acc[row][g] = _mm512_add_ps(acc[row][g], sum[s][row][g]);
    }
}

// Calls tile(rows, first) with constant numbers of rows, at most MOST_ROWS and nearly equal.
template <int ROWS, class Tile>
static inline __attribute__((always_inline)) void in_tiles(Tile&& tile) {
  constexpr int COUNT = (ROWS + MOST_ROWS - 1) / MOST_ROWS, FEW = ROWS / COUNT, LARGER = ROWS % COUNT;
  int first = 0;
  for (int i = 0; i < LARGER; i++, first += FEW + 1) tile(std::integral_constant<int, FEW + 1>{}, first);
  for (int i = LARGER; i < COUNT; i++, first += FEW) tile(std::integral_constant<int, FEW>{}, first);
}

// ---- the two phases, a tile each

template <int ROWS>
static inline void project(const float* x, const float* W, const float* bias, float* projected) {
  Vector acc[ROWS][GATES];
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
    for (int g = 0; g < GATES; g++) acc[row][g] = _mm512_load_ps(bias + g * LANES);
  multiply<ROWS>(x, W, acc);
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
    for (int g = 0; g < GATES; g++)
      _mm512_store_ps(projected + (size_t)row * BLOCKS * WIDE + g * LANES, acc[row][g]);
}

template <int ROWS>
static inline void recur(const float* h, const float* U, const float* projected, float* c, float* out) {
  Vector acc[ROWS][GATES];
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
    for (int g = 0; g < GATES; g++)
      acc[row][g] = _mm512_load_ps(projected + (size_t)row * BLOCKS * WIDE + g * LANES);
  multiply<ROWS>(h, U, acc);
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++) {
    const Vector i = sigmoid(acc[row][0]), f = sigmoid(acc[row][1]);
    const Vector g = hyperbolic_tangent(acc[row][2]), o = sigmoid(acc[row][3]);
    const Vector next = _mm512_fmadd_ps(f, _mm512_loadu_ps(c + row * HIDDEN), _mm512_mul_ps(i, g));
    _mm512_storeu_ps(c + row * HIDDEN, next);
    _mm512_storeu_ps(out + row * HIDDEN, _mm512_mul_ps(o, hyperbolic_tangent(next)));
  }
}

// ---- the team

struct alignas(64) Flag {
  std::atomic<int64_t> epoch{0};
};
static Flag flags[MOST_THREADS];
static int64_t epochs = 0;

static inline void barrier(int me, int threads, int64_t epoch) {
  flags[me].epoch.store(epoch, std::memory_order_release);
  for (int other = 0; other < threads; other++)
    while (flags[other].epoch.load(std::memory_order_acquire) < epoch) _mm_pause();
}

struct Tensors {  // 64-byte aligned, contiguous, as the name says; W, U, b packed
  const float *x_TBH, *W, *U, *b;
  float *projected, *out_TBH, *h_BH, *c_BH;
};

static void work(const Tensors& t, const float* zeros_BH, int me, int threads, int64_t epoch) {
  const int from = BLOCKS * me / threads, to = BLOCKS * (me + 1) / threads;
  for (int block = from; block < to; block++)
    in_tiles<STEPS * BATCH>([&](auto rows, int first) {
      project<decltype(rows)::value>(t.x_TBH + (size_t)first * HIDDEN, t.W + (size_t)block * HIDDEN * WIDE,
                                     t.b + block * WIDE, t.projected + ((size_t)first * BLOCKS + block) * WIDE);
    });
  for (int row = 0; row < BATCH; row++)
    memset(t.c_BH + row * HIDDEN + from * LANES, 0, (to - from) * LANES * sizeof(float));
  for (int step = 0; step < STEPS; step++) {
    const float* h = step ? t.out_TBH + (size_t)(step - 1) * BATCH * HIDDEN : zeros_BH;
    for (int block = from; block < to; block++)
      in_tiles<BATCH>([&](auto rows, int first) {
        const size_t row = (size_t)step * BATCH + first;
        recur<decltype(rows)::value>(h + first * HIDDEN, t.U + (size_t)block * HIDDEN * WIDE,
                                     t.projected + (row * BLOCKS + block) * WIDE,
                                     t.c_BH + first * HIDDEN + block * LANES, t.out_TBH + row * HIDDEN + block * LANES);
      });
    barrier(me, threads, epoch + step + 1);
  }
  for (int row = 0; row < BATCH; row++)
    memcpy(t.h_BH + row * HIDDEN + from * LANES,
           t.out_TBH + ((size_t)(STEPS - 1) * BATCH + row) * HIDDEN + from * LANES, (to - from) * LANES * sizeof(float));
}

// From zero states; not re-entrant, as the flags are shared.
extern "C" void lstm_run(const Tensors* tensors, int threads) {
  alignas(64) static const float zeros_BH[BATCH * HIDDEN] = {};
  const int64_t epoch = epochs;
#pragma omp parallel num_threads(threads)
  work(*tensors, zeros_BH, omp_get_thread_num(), threads, epoch);
  epochs += STEPS;
}

// Four matrices [rows][HIDDEN] side by side: [block][row][gate][16]. A bias is a matrix of one row.
extern "C" void lstm_pack(const float* const* gates, long rows, float* packed) {
  for (long block = 0; block < BLOCKS; block++)
    for (long row = 0; row < rows; row++)
      for (int g = 0; g < GATES; g++)
        memcpy(packed + ((block * rows + row) * GATES + g) * LANES, gates[g] + row * HIDDEN + block * LANES,
               LANES * sizeof(float));
}
