"""Math functions of kernels: float32, and float64's exp, as polynomials on whole vectors; the rest of float64
and rare ones lane by lane through libm.

Coefficients are our own weighted minimax fits (Lawson iteration in float64); the tests measure every
function over dense grids. Each is right at NaN, infinities, signed zeros and subnormal numbers; none relies
on -ffast-math.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import factorial

_LIBM_F32 = (
    "erfc sin cos tan asin acos atan sinh cosh asinh acosh atanh lgamma atan2 hypot pow fmod"
).split()
"""float32 functions that are computed lane by lane."""

_LIBM_F64 = [*_LIBM_F32, *"exp2 expm1 log log2 log10 log1p tanh erf".split()]
_TWO_ARGUMENTS = frozenset("atan2 hypot pow fmod".split())


def _polynomial(x: str, *coefficients: str) -> str:
    """Horner's scheme, highest power first."""
    text = coefficients[0]
    for c in coefficients[1:]:
        text = f"({text}) * {x} + {c}" if " " in text else f"{text} * {x} + {c}"
    return text


def _on_scalars(name: str) -> str:
    """The float32 scalar version: one lane of the vector's, so that both round alike."""
    return f"INLINE f32 {name}(f32 x) {{ return {name}(broadcast(x))[0]; }}\n"


_BITS = """\
INLINE i32v bits(f32v x) { return (i32v)x; }
INLINE f32v magnitude(f32v x) { return (f32v)(bits(x) & 0x7fffffff); }
INLINE f32v with_sign(f32v x, f32v sign) {
  return (f32v)((bits(x) & 0x7fffffff) | (bits(sign) & ~0x7fffffff));
}
INLINE f32v nearest(f32v x) { return (x + 12582912.f) - 12582912.f; }  // |x| < 2^22
"""

_POWER_OF_TWO = """\
// x * 2^n for whole n in [-300, 300], rounded once more only where the result is subnormal.
INLINE f32v scale(f32v x, f32v n) { @scale_f32@ }
"""
"""One instruction where a vector is one register of AVX-512: the prelude fills in which."""

_CLAMPS = """\
// x, or the bound that it is past; a NaN stays one.
INLINE f32v not_below(f32 bound, f32v x) { @max_f32@ }
INLINE f32v not_above(f32 bound, f32v x) { @min_f32@ }
"""
"""One instruction where a vector is one register: the prelude fills in which."""

_EXP_POLYNOMIAL = f"""\
// e^r - 1 for |r| <= ln(2) / 2
INLINE f32v exp_rest(f32v r) {{
  f32v p = {
    _polynomial(
        "r",
        "1.97891262e-4f",
        "1.39457523e-3f",
        "8.33350420e-3f",
        "4.16662805e-2f",
        "1.66666657e-1f",
        "0.5f",
    )
};
  return p * (r * r) + r;
}}
"""

_EXP = """\
INLINE f32v exp_(f32v x) {
  f32v y = not_above(89.f, not_below(-104.f, x));
  f32v n = nearest(y * 1.44269504f), r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  return scale(exp_rest(r) + 1.f, n);
}
""" + _on_scalars("exp_")

_EXP_F64 = f"""\
INLINE f64v exp_(f64v x) {{
  f64v y = x < -746. ? broadcast(-746.) : x;
  y = y > 710. ? broadcast(710.) : y;
  const f64v shift = broadcast(6755399441055744.);  // 1.5 * 2^52: whole numbers in the low bits of a sum
  f64v t = y * 1.4426950408889634 + shift, n = t - shift;
  f64v r = (y - n * 6.93147180369123816e-1) - n * 1.90821492927058770e-10;
  f64v p = {_polynomial("r", *(f"{1 / factorial(k)!r}" for k in range(13, 1, -1)))};
  i64v i = (i64v)t - (i64v)shift, half = i >> 1;
  return (p * (r * r) + r + 1.) * (f64v)((half + 1023) << 52) * (f64v)((i - half + 1023) << 52);
}}
INLINE f64 exp_(f64 x) {{ return exp_(broadcast(x))[0]; }}
"""
"""Taylor's series: its first term left out is below 4e-18 of the result where |r| <= ln(2) / 2."""

_EXP2 = """\
INLINE f32v exp2_(f32v x) {
  f32v y = not_above(129.f, not_below(-151.f, x));
  f32v n = nearest(y);
  return scale(exp_rest((y - n) * 0.693147181f) + 1.f, n);
}
""" + _on_scalars("exp2_")

_EXPM1 = """\
INLINE f32v expm1_(f32v x) {
  f32v y = not_above(88.f, not_below(-18.f, x));
  f32v n = nearest(y * 1.44269504f), r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  f32v s = scale(broadcast(1.f), n), near = s * exp_rest(r) + (s - 1.f);
  f32v result = x > 80.f ? exp_(x) : near;
  return x == 0.f ? x : result;
}
""" + _on_scalars("expm1_")

_LOG_POLYNOMIAL = f"""\
// log(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)], without the leading f
INLINE f32v log_rest(f32v f) {{
  f32v p = {
    _polynomial(
        "f",
        "6.74660131e-2f",
        "-1.16756409e-1f",
        "1.18881747e-1f",
        "-1.24055915e-1f",
        "1.42195508e-1f",
        "-1.66679963e-1f",
        "2.00021192e-1f",
        "-2.50000089e-1f",
        "3.33333135e-1f",
    )
};
  return p * (f * f * f) - 0.5f * (f * f);
}}
// x = 2^e * (1 + f); the special values are left to log_special
INLINE f32v split(f32v x, f32v* e) {{
  f32v y = x < 1.17549435e-38f ? x * 8388608.f : x;
  i32v b = bits(y) - 0x3f3504f3, k = b >> 23;
  f32v below = x < 1.17549435e-38f ? broadcast(23.f) : f32v{{}};
  *e = __builtin_convertvector(k, f32v) - below;
  return (f32v)((b & 0x7fffff) + 0x3f3504f3) - 1.f;
}}
INLINE f32v log_special(f32v x, f32v result) {{
  const f32v infinity = broadcast(__builtin_inff());
  result = x == infinity ? x : result;
  result = x == 0.f ? -infinity : result;
  result = x < 0.f ? broadcast(__builtin_nanf("")) : result;
  return x != x ? x : result;
}}
"""

_LOG = """\
INLINE f32v log_(f32v x) {
  f32v e, f = split(x, &e);
  return log_special(x, e * 0.693359375f + (f + (log_rest(f) + e * -2.12194440e-4f)));
}
""" + _on_scalars("log_")

# log2(1 + f) and log10(1 + f) as c * log(1 + f), with c = c_high + c_low and c_high * f kept in the last sum.
_LOG2 = """\
INLINE f32v log2_(f32v x) {
  f32v e, f = split(x, &e), q = log_rest(f);
  return log_special(x, e + (f + (f * 0.442695041f + q * 1.44269504f)));
}
""" + _on_scalars("log2_")

_LOG10 = """\
INLINE f32v log10_(f32v x) {
  f32v e, f = split(x, &e), q = log_rest(f);
  f32v low = e * 4.60503891e-6f + (q * 0.434294482f + f * 7.00731854e-4f);
  return log_special(x, e * 0.301025391f + (f * 0.43359375f + low));
}
""" + _on_scalars("log10_")

_LOG1P = """\
INLINE f32v log1p_(f32v x) {
  f32v u = x + 1.f, y = log_(u) * (x / (u - 1.f));
  y = u == 1.f ? x : y;
  return u == __builtin_inff() ? u : y;
}
""" + _on_scalars("log1p_")

_SIGMOID = (
    """\
// 1 / (1 + e^-x), both parts of the fraction times a power of two: no overflow, and one rounding at the end,
// so that small results are as exact as large ones.
INLINE f32v sigmoid_(f32v x) {
  f32v y = not_above(80.f, not_below(-110.f, x));
  f32v n = nearest(y * 1.44269504f), r = (n * 0.693359375f - y) + n * -2.12194440e-4f;
  f32v s = scale(broadcast(1.f), n);
  return s / ((s + 1.f) + exp_rest(r));
}
"""
    + _on_scalars("sigmoid_")
    + """\
INLINE f64 sigmoid_(f64 x) { return 1. / (1. + exp_(-x)); }
INLINE f64v sigmoid_(f64v x) { return 1. / (1. + exp_(-x)); }
"""
)

_TANH = """\
// Of a = |x| and E = e^-2a: (1 - E) / (1 + E) where little is lost of 1 - E, else 1 - 2 E / (1 + E), which is
// within a last place of 1 where the other one is two off (and 1 + tanh(x) shows it). One division for both.
INLINE f32v tanh_(f32v x) {
  f32v a = magnitude(x), y = not_below(-20.f, a * -2.f);
  f32v n = nearest(y * 1.44269504f), r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  f32v s = scale(broadcast(1.f), n), p = exp_rest(r);
  f32v e = s * p + s, lost = s * p + (s - 1.f);
  f32v q = (a < 0.75f ? -lost : e + e) / (s * p + (s + 1.f));
  return with_sign(a < 0.75f ? q : 1.f - q, x);
}
""" + _on_scalars("tanh_")

_ERF = f"""\
INLINE f32v erf_(f32v x) {{
  f32v a = magnitude(x), s = x * x, t = not_above(4.f, a);
  f32v p = {
    _polynomial(
        "s",
        "8.18524859e-5f",
        "-8.09774909e-4f",
        "5.19695738e-3f",
        "-2.68577076e-2f",
        "1.12836644e-1f",
        "-3.76126319e-1f",
        "1.28379166e-1f",
    )
};
  f32v q = {
    _polynomial(
        "t",
        "-5.29700310e-6f",
        "4.99405045e-5f",
        "2.74351423e-5f",
        "-2.86912103e-3f",
        "2.25756150e-2f",
        "-1.05169497e-1f",
        "-6.35673165e-1f",
        "-1.12854147f",
    )
};
  f32v far = 1.f - exp_(q * t), near = p * x + x;
  return a < 0.9375f ? near : x != x ? x : with_sign(far, x);
}}
""" + _on_scalars("erf_")

_SQUARE_ROOT = """\
INLINE f32 sqrt_(f32 x) { return __builtin_sqrtf(x); }
INLINE f64 sqrt_(f64 x) { return __builtin_sqrt(x); }
INLINE f32v sqrt_(f32v x) { @sqrt_f32@ }
INLINE f64v sqrt_(f64v x) { @sqrt_f64@ }
"""
"""One instruction where a vector is one register: the prelude fills in which."""

_ROUNDING = """\
// Rounding to whole numbers: nothing to do from 2^23 (2^52) on; the sign of a zero is kept.
INLINE f32v whole(f32v x, f32v rounded) { return magnitude(x) < 8388608.f ? with_sign(rounded, x) : x; }
INLINE f64v copy_sign(f64v x, f64v s) { return (f64v)(((i64v)x & ~(1l << 63)) | ((i64v)s & (1l << 63))); }
INLINE f64v whole(f64v x, f64v rounded) {
  return copy_sign(x, f64v{}) < 4503599627370496. ? copy_sign(rounded, x) : x;
}
INLINE f32v cut(f32v x) { return __builtin_convertvector(__builtin_convertvector(x, i32v), f32v); }
INLINE f64v cut(f64v x) { return __builtin_convertvector(__builtin_convertvector(x, i64v), f64v); }
"""

_TRUNC = """\
INLINE f32v trunc_(f32v x) { return whole(x, cut(x)); }
INLINE f64v trunc_(f64v x) { return whole(x, cut(x)); }
INLINE f32 trunc_(f32 x) { return __builtin_truncf(x); }
INLINE f64 trunc_(f64 x) { return __builtin_trunc(x); }
"""

_FLOOR = """\
INLINE f32v floor_(f32v x) { f32v t = cut(x); return whole(x, t > x ? t - 1.f : t); }
INLINE f64v floor_(f64v x) { f64v t = cut(x); return whole(x, t > x ? t - 1. : t); }
INLINE f32 floor_(f32 x) { return __builtin_floorf(x); }
INLINE f64 floor_(f64 x) { return __builtin_floor(x); }
"""

_CEIL = """\
INLINE f32v ceil_(f32v x) { f32v t = cut(x); return whole(x, t < x ? t + 1.f : t); }
INLINE f64v ceil_(f64v x) { f64v t = cut(x); return whole(x, t < x ? t + 1. : t); }
INLINE f32 ceil_(f32 x) { return __builtin_ceilf(x); }
INLINE f64 ceil_(f64 x) { return __builtin_ceil(x); }
"""

_ROUND = """\
INLINE f32v round_(f32v x) { f32v a = magnitude(x); return whole(x, (a + 8388608.f) - 8388608.f); }
INLINE f64v round_(f64v x) {
  f64v a = copy_sign(x, f64v{});
  return whole(x, (a + 4503599627370496.) - 4503599627370496.);
}
INLINE f32 round_(f32 x) { return __builtin_rintf(x); }
INLINE f64 round_(f64 x) { return __builtin_rint(x); }
"""

_REMAINDER = """\
// fmod has the dividend's sign; mod the divisor's, and no sign of a zero is lost.
INLINE f32 mod_(f32 a, f32 b) { f32 r = fmodf(a, b); return r != 0.f && (r < 0.f) != (b < 0.f) ? r + b : r; }
INLINE f64 mod_(f64 a, f64 b) { f64 r = fmod(a, b); return r != 0. && (r < 0.) != (b < 0.) ? r + b : r; }
INLINE f32v mod_(f32v a, f32v b) { for (int l = 0; l < W; l++) a[l] = mod_((f32)a[l], (f32)b[l]); return a; }
INLINE f64v mod_(f64v a, f64v b) { for (int l = 0; l < W; l++) a[l] = mod_((f64)a[l], (f64)b[l]); return a; }
"""

# As Python and torch have it: right where a / b rounds up to a whole number.
_FLOORDIV = """\
INLINE f32 floordiv_(f32 a, f32 b) {
  if (b == 0.f) return a / b;
  f32 r = fmodf(a, b), q = (a - r) / b;
  if (r != 0.f && (b < 0.f) != (r < 0.f)) q -= 1.f;
  if (q == 0.f) return __builtin_copysignf(0.f, a / b);
  f32 f = __builtin_floorf(q);
  return q - f > 0.5f ? f + 1.f : f;
}
INLINE f64 floordiv_(f64 a, f64 b) {
  if (b == 0.) return a / b;
  f64 r = fmod(a, b), q = (a - r) / b;
  if (r != 0. && (b < 0.) != (r < 0.)) q -= 1.;
  if (q == 0.) return __builtin_copysign(0., a / b);
  f64 f = __builtin_floor(q);
  return q - f > 0.5 ? f + 1. : f;
}
INLINE f32v floordiv_(f32v a, f32v b) {
  for (int l = 0; l < W; l++) a[l] = floordiv_((f32)a[l], (f32)b[l]);
  return a;
}
INLINE f64v floordiv_(f64v a, f64v b) {
  for (int l = 0; l < W; l++) a[l] = floordiv_((f64)a[l], (f64)b[l]);
  return a;
}
"""

# Integers: the divisor is never zero here (a check has replaced it); -1 would overflow at the smallest
# dividend.
_INTEGER_DIVISION = """\
#define DIVISION(T) \\
  INLINE T truncdiv_(T a, T b) { return b == (T)-1 ? (T)(0 - a) : (T)(a / b); } \\
  INLINE T fmod_(T a, T b) { return b == (T)-1 ? (T)0 : (T)(a % b); } \\
  INLINE bool rounds_up(T r, T b) { return r != 0 && (r < 0) != (b < 0); } \\
  INLINE T floordiv_(T a, T b) { return (T)(truncdiv_(a, b) - rounds_up(fmod_(a, b), b)); } \\
  INLINE T mod_(T a, T b) { T r = fmod_(a, b); return rounds_up(r, b) ? (T)(r + b) : r; } \\
  LANE_BY_LANE(truncdiv_, T) LANE_BY_LANE(fmod_, T) LANE_BY_LANE(floordiv_, T) LANE_BY_LANE(mod_, T)
#define LANE_BY_LANE(F, T) \\
  INLINE T##v F(T##v a, T##v b) { for (int l = 0; l < W; l++) a[l] = F((T)a[l], (T)b[l]); return a; }
DIVISION(i64) DIVISION(i32) DIVISION(i16) DIVISION(i8)
// -1 is an ordinary 255 here
INLINE u8 truncdiv_(u8 a, u8 b) { return a / b; }
INLINE u8 floordiv_(u8 a, u8 b) { return a / b; }
INLINE u8 fmod_(u8 a, u8 b) { return a % b; }
INLINE u8 mod_(u8 a, u8 b) { return a % b; }
LANE_BY_LANE(truncdiv_, u8) LANE_BY_LANE(fmod_, u8) LANE_BY_LANE(floordiv_, u8) LANE_BY_LANE(mod_, u8)
"""

_INTEGER_POWER = """\
// Negative exponents, as torch has them: 0, but for the bases 1 and -1.
#define POWER(T) \\
  INLINE T ipow_(T a, T b) { \\
    if (b < 0) return a == 1 ? (T)1 : a == (T)-1 ? (T)(b % 2 ? -1 : 1) : (T)0; \\
    T r = 1; \\
    for (; b; b = (T)(b / 2), a = (T)(a * a)) if (b & 1) r = (T)(r * a); \\
    return r; \\
  } \\
  INLINE T##v ipow_(T##v a, T##v b) { for (int l = 0; l < W; l++) a[l] = ipow_((T)a[l], (T)b[l]); return a; }
POWER(i64) POWER(i32) POWER(i16) POWER(i8) POWER(u8)
"""

_SHIFTS = """\
// Shifts by less than 0 or by all bits and more: 0, and the sign's bits.
#define SHIFTS(T, BITS, SIGN) \\
  INLINE T shl_(T a, T b) { return b < 0 || b >= BITS ? (T)0 : (T)((unsigned long)a << b); } \\
  INLINE T shr_(T a, T b) { \\
    if (b < 0 || b >= BITS - SIGN) return SIGN ? (T)(a >> (BITS - 1)) : (T)0; \\
    return (T)(a >> b); \\
  } \\
  INLINE T##v shl_(T##v a, T##v b) { for (int l = 0; l < W; l++) a[l] = shl_((T)a[l], (T)b[l]); return a; } \\
  INLINE T##v shr_(T##v a, T##v b) { for (int l = 0; l < W; l++) a[l] = shr_((T)a[l], (T)b[l]); return a; }
SHIFTS(i64, 64, 1) SHIFTS(i32, 32, 1) SHIFTS(i16, 16, 1) SHIFTS(i8, 8, 1) SHIFTS(u8, 8, 0)
"""

_EXTREMES = """\
// The larger and the smaller; NaN if either is.
#define EXTREMES(T) \\
  INLINE T max_(T a, T b) { return (a > b) | (a != a) ? a : b; } \\
  INLINE T min_(T a, T b) { return (a < b) | (a != a) ? a : b; } \\
  INLINE T##v max_(T##v a, T##v b) { return (a > b) | (a != a) ? a : b; } \\
  INLINE T##v min_(T##v a, T##v b) { return (a < b) | (a != a) ? a : b; }
EXTREMES(f32) EXTREMES(f64) EXTREMES(i64) EXTREMES(i32) EXTREMES(i16) EXTREMES(i8) EXTREMES(u8)
"""

_SIGNS = """\
INLINE f32v abs_(f32v x) { return magnitude(x); }
INLINE f64v abs_(f64v x) { return (f64v)((i64v)x & ~(1l << 63)); }
INLINE f32 abs_(f32 x) { return __builtin_fabsf(x); }
INLINE f64 abs_(f64 x) { return __builtin_fabs(x); }
#define SIGN(T) \\
  INLINE T sign_(T x) { return x > 0 ? (T)1 : x < 0 ? (T)-1 : (T)0; } \\
  INLINE T##v sign_(T##v x) { return x > 0 ? broadcast((T)1) : x < 0 ? broadcast((T)-1) : T##v{}; }
SIGN(f32) SIGN(f64)
"""

_POSITIONS = """\
// The running extreme and where it was found first; a NaN is more extreme than any number.
#define POSITIONS(T) \\
  TAKE(larger, >, T) TAKE(smaller, <, T) FOLD(argmax, >, T) FOLD(argmin, <, T)
#define TAKE(NAME, OP, T) \\
  INLINE void take_##NAME(T& best, i64& at, T x, i64 here) { \\
    if ((x OP best) | ((x != x) & (best == best))) best = x, at = here; \\
  } \\
  template <class P> INLINE void take_##NAME(T##v& best, P& at, T##v x, P here) { \\
    const maskv m = mask((x OP best) | ((x != x) & (best == best))); \\
    best = select(m, x, best), at = select(m, here, at); \\
  } \\
  template <class P> INLINE void merge_##NAME(T##v& best, P& at, T##v x, P here) { \\
    const maskv more = mask((x OP best) | ((x != x) & (best == best))); \\
    const maskv m = more | (mask((x == best) | ((x != x) & (best != best))) & mask(here < at)); \\
    best = select(m, x, best), at = select(m, here, at); \\
  }
// Of lanes that began at neighbours: `at` is where the first lane stood, lane l was l places after it.
#define FOLD(NAME, OP, T) \\
  template <class P> INLINE i64 NAME##_lanes(T##v best, P at) { \\
    int b = 0; \\
    for (int l = 1; l < W; l++) { \\
      const T x = best[l], y = best[b]; \\
      const bool same = x == y || (x != x && y != y); \\
      if (x OP y || (x != x && y == y) || (same && at[l] + l < at[b] + b)) b = l; \\
    } \\
    return at[b] + b; \\
  }
POSITIONS(f32) POSITIONS(f64) POSITIONS(i64) POSITIONS(i32) POSITIONS(i16) POSITIONS(i8) POSITIONS(u8)
"""

_BF16 = """\
// bfloat16 is the upper half of a float32; rounded to nearest even, a NaN stays one.
INLINE f32v from_bf16(u16v v) { return (f32v)(__builtin_convertvector(v, u32v) << 16); }
INLINE u16v to_bf16(f32v x) {
  u32v b = (u32v)x, r = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  return __builtin_convertvector(x != x ? (i32v)(u32v{} + 0x7fc0) : (i32v)r, u16v);
}
INLINE f32 from_bf16(u16 v) { union { u32 b; f32 x; } u = {(u32)v << 16}; return u.x; }
INLINE u16 to_bf16(f32 x) { return to_bf16(broadcast(x))[0]; }
INLINE f32v round_bf16(f32v x) { return from_bf16(to_bf16(x)); }
INLINE f32 round_bf16(f32 x) { return from_bf16(to_bf16(x)); }
"""

F16_BY_BITS = """\
// IEEE half precision by arithmetic on bits, subnormal numbers too.
INLINE f32v from_f16(u16v v) {
  u32v h = __builtin_convertvector(v, u32v), sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
  f32v normal = (f32v)(rest + (112u << 23)), tiny = (f32v)(rest + (113u << 23)) - 6.10351562e-5f;
  f32v x = (rest >= (31u << 23)) ? (f32v)(rest | 0x7f800000u) : (rest < (1u << 23)) ? tiny : normal;
  return (f32v)((u32v)x | sign);
}
INLINE u16v to_f16(f32v x) {
  u32v b = (u32v)x, sign = (b >> 16) & 0x8000, a = b & 0x7fffffff;
  u32v normal = (a - (112u << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
  u32v tiny = (u32v)((f32v)a + 0.5f) - 0x3f000000u;
  i32v r = a < (113u << 23) ? (i32v)tiny : (i32v)normal;
  r = a >= 0x477ff000u ? i32v{} + 0x7c00 : r;
  r = a > 0x7f800000u ? i32v{} + 0x7e00 : r;
  return __builtin_convertvector((u32v)r | sign, u16v);
}
"""

_F16 = """\
@f16@
INLINE f32 from_f16(u16 v) { return from_f16(broadcast(v))[0]; }
INLINE u16 to_f16(f32 x) { return to_f16(broadcast(x))[0]; }
INLINE f32v round_f16(f32v x) { return from_f16(to_f16(x)); }
INLINE f32 round_f16(f32 x) { return from_f16(to_f16(x)); }
"""

_HORIZONTAL = """\
// Combining the lanes of one vector, by halves.
#define BY_HALVES(T, PAIR) \\
  T x[W]; \\
  EACH_LANE x[l] = v[l]; \\
  _Pragma("GCC unroll 4") for (int h = W / 2; h; h /= 2) \\
    _Pragma("GCC unroll 8") for (int l = 0; l < h; l++) x[l] = (T)(PAIR); \\
  return x[0];
#define HORIZONTAL(T) \\
  INLINE T sum_lanes(T##v v) { BY_HALVES(T, x[l] + x[l + h]) } \\
  INLINE T prod_lanes(T##v v) { T r = v[0]; for (int l = 1; l < W; l++) r = (T)(r * v[l]); return r; } \\
  INLINE T max_lanes(T##v v) { BY_HALVES(T, max_(x[l], x[l + h])) } \\
  INLINE T min_lanes(T##v v) { BY_HALVES(T, min_(x[l], x[l + h])) }
HORIZONTAL(f32) HORIZONTAL(f64) HORIZONTAL(i64) HORIZONTAL(i32) HORIZONTAL(i16) HORIZONTAL(i8) HORIZONTAL(u8)
"""

_TRANSPOSED = """\
// Lane i of the result is the sum of the lanes of v[i].
template <class V, class I> INLINE V sum_each_of(V* v) {
@sum_each@
  return v[0];
}
INLINE f32v sum_each(f32v* v) { return sum_each_of<f32v, i32v>(v); }
INLINE f64v sum_each(f64v* v) { return sum_each_of<f64v, i64v>(v); }
"""


def _libm(name: str, kinds: tuple[str, ...]) -> str:
    """A libm function lane by lane."""
    two = name in _TWO_ARGUMENTS
    text = ""
    for kind in kinds:
        symbol = name + ("f" if kind == "f32" else "")
        if two:
            text += f"INLINE {kind} {name}_({kind} a, {kind} b) {{ return {symbol}(a, b); }}\n"
            each = f"for (int l = 0; l < W; l++) a[l] = {symbol}(a[l], b[l]);"
            text += f"INLINE {kind}v {name}_({kind}v a, {kind}v b) {{ {each} return a; }}\n"
        else:
            text += f"INLINE {kind} {name}_({kind} x) {{ return {symbol}(x); }}\n"
            each = f"for (int l = 0; l < W; l++) x[l] = {symbol}(x[l]);"
            text += f"INLINE {kind}v {name}_({kind}v x) {{ {each} return x; }}\n"
    return text


_POLYNOMIALS = {
    "exp2": _EXP2,
    "expm1": _EXPM1,
    "log": _LOG,
    "log2": _LOG2,
    "log10": _LOG10,
    "log1p": _LOG1P,
    "tanh": _TANH,
    "erf": _ERF,
}

MATH: Mapping[str, str] = {
    "bits": _BITS,
    "scale": _POWER_OF_TWO,
    "clamps": _CLAMPS,
    "exp_rest": _EXP_POLYNOMIAL,
    "log_rest": _LOG_POLYNOMIAL,
    "exp": _EXP + _EXP_F64,
    **{name: text + _libm(name, ("f64",)) for name, text in _POLYNOMIALS.items()},
    **{name: _libm(name, ("f32", "f64")) for name in _LIBM_F32},
    "sigmoid": _SIGMOID,
    "sqrt": _SQUARE_ROOT,
    "rounding": _ROUNDING,
    "trunc": _TRUNC,
    "floor": _FLOOR,
    "ceil": _CEIL,
    "round": _ROUND,
    "mod": _REMAINDER,
    "floordiv": _FLOORDIV,
    "integer_division": _INTEGER_DIVISION,
    "integer_power": _INTEGER_POWER,
    "shifts": _SHIFTS,
    "extremes": _EXTREMES,
    "horizontal": _HORIZONTAL,
    "transposed": _TRANSPOSED,
    "signs": _SIGNS,
    "positions": _POSITIONS,
    "bf16": _BF16,
    "f16": _F16,
}
"""Pieces of the prelude by name, callees before callers."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "exp_rest": ("bits",),
    "exp": ("bits", "scale", "clamps", "exp_rest"),
    "exp2": ("bits", "scale", "clamps", "exp_rest"),
    "expm1": ("exp",),
    "log_rest": ("bits",),
    "log": ("log_rest",),
    "log2": ("log_rest",),
    "log10": ("log_rest",),
    "log1p": ("log",),
    "sigmoid": ("exp",),
    "tanh": ("exp",),
    "erf": ("exp",),
    "rounding": ("bits",),
    "trunc": ("rounding",),
    "floor": ("rounding",),
    "ceil": ("rounding",),
    "round": ("rounding",),
    "horizontal": ("extremes",),
    "signs": ("bits",),
}
"""What a piece calls."""


def emit_libm_declarations() -> list[str]:
    """Declarations of libm's functions, a line each: kernels include no headers."""
    lines = []
    for name in _LIBM_F64:
        two = name in _TWO_ARGUMENTS
        lines.append(f"double {name}(double{', double' if two else ''});")
        if name in _LIBM_F32:
            lines.append(f"float {name}f(float{', float' if two else ''});")
    return lines
