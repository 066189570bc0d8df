// Multiply-adds and nothing else: how long a number of floating-point operations takes at this machine's peak.
//
//   g++ -O3 -march=native -fopenmp -shared -fPIC floor.cpp
#include <omp.h>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
constexpr int CHAINS = 12;  // independent sums: latency times the number of FMA units of any processor of today

static float spend(long rounds) {
  Vector sum[CHAINS], factor = {}, term = {};
  for (Vector& s : sum) s = factor;
  asm volatile("" : "+x"(factor), "+x"(term));  // not known to the compiler, so not folded
  for (long i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * factor + term;
  float total = 0;
  for (const Vector& s : sum) total += s[0];
  return total;
}

// About `flops` operations, shared among the threads; the result keeps the compiler from dropping the work.
extern "C" float floor_spend(double flops, int threads) {
  const long rounds = (long)(flops / threads / (2.0 * LANES * CHAINS));
  float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  total += spend(rounds);
  return total;
}
