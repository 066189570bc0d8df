"""The vector types and helpers that every kernel's text starts with: GCC vector extensions, no headers."""

from __future__ import annotations

from collections.abc import Iterable

from wolong_fx.codegen.cpp.machine import Machine
from wolong_fx.codegen.cpp.vector_math import F16_BY_BITS, MATH, NEEDS

SCALARS = """\
typedef float f32;
typedef double f64;
typedef long i64;
typedef int i32;
typedef short i16;
typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

INLINE i64 at_most(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 floordiv(i64 a, i64 b) { return a / b - (a % b < 0); }  // b > 0
INLINE i64 floormod(i64 a, i64 b) { return a % b + (a % b < 0 ? b : 0); }

// A check that failed: the smallest number is kept, so that the answer does not depend on the threads.
NOINLINE void fail(i64* failure, i64 number) {
  i64 seen = __atomic_load_n(failure, __ATOMIC_RELAXED);
  while ((seen == 0 || number < seen) &&
         !__atomic_compare_exchange_n(failure, &seen, number, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}
INLINE bool is_within(i64 at, i64 extent, i64* failure, i64 number) {
  const bool ok = (unsigned long)at < (unsigned long)extent;
  if (!ok) fail(failure, number);
  return ok;
}
template <class T> INLINE T nonzero(T divisor, i64* failure, i64 number) {
  if (divisor == 0) fail(failure, number);
  return divisor == 0 ? (T)1 : divisor;
}
"""

VECTORS = """\
// Vectors of W lanes of a type T: Tv, and Tu in memory at any address. A mask is an i32v of 0 and -1.
#define EACH_LANE _Pragma("GCC unroll 16") for (int l = 0; l < W; l++)
#define LANES(T) \\
  typedef T T##v __attribute__((vector_size(sizeof(T) * W), may_alias)); \\
  typedef T T##u __attribute__((vector_size(sizeof(T) * W), aligned(sizeof(T)), may_alias)); \\
  INLINE T##v broadcast(T x) { return x - T##v{}; } \\
  INLINE T##v load(const T* p) { return *(const T##u*)p; } \\
  INLINE void store(T* p, T##v v) { *(T##u*)p = v; } \\
  INLINE T##v load_strided(const T* p, i64 stride) { T##v v; EACH_LANE v[l] = p[l * stride]; return v; } \\
  INLINE T##v load_strided(const T* p, i64 stride, i64 n) { \\
    T x[W] = {}; \\
    for (int l = 0; l < W && l < n; l++) x[l] = p[l * stride]; \\
    return load(x); \\
  } \\
  INLINE void store_strided(T* p, i64 stride, T##v v) { EACH_LANE p[l * stride] = v[l]; } \\
  INLINE void store_strided(T* p, i64 stride, T##v v, i64 n) { \\
    T x[W]; \\
    store(x, v); \\
    for (int l = 0; l < W && l < n; l++) p[l * stride] = x[l]; \\
  }
LANES(f32) LANES(f64) LANES(i64) LANES(i32) LANES(i16) LANES(i8) LANES(u8) LANES(u16) LANES(u32)
typedef i32v maskv;
INLINE i64v lane_numbers() { return i64v{@numbers@}; }
INLINE maskv first_lanes(i64 n) { return i32v{@numbers@} < (i32)at_most(n, W); }

// The first n lanes, where a row ends inside a vector (n may be negative, or more than W).
#define SOME_LANES(T) \\
  INLINE T##v load(const T* p, i64 n) { return n >= W ? load(p) : load_strided(p, 1, n); } \\
  INLINE void store(T* p, T##v v, i64 n) { \\
    if (n >= W) store(p, v); else store_strided(p, 1, v, n); \\
  }
// Lanes that lie next to each other, where `ok`; zeros elsewhere, where memory need not be ours.
#define LANES_WHERE(T) \\
  INLINE T##v load_where(const T* p, maskv ok) { \\
    T x[W] = {}; \\
    for (int l = 0; l < W; l++) if (ok[l]) x[l] = p[l]; \\
    return load(x); \\
  }
LANES_WHERE(i64) LANES_WHERE(i32) LANES_WHERE(i16) LANES_WHERE(i8) LANES_WHERE(u8) LANES_WHERE(u16)
@where@
// Lanes at offsets of their own, where `ok`.
#define ANY_LANES(T) \\
  INLINE T##v gather(const T* p, i64v at, maskv ok) { \\
    T x[W] = {}; \\
    for (int l = 0; l < W; l++) if (ok[l]) x[l] = p[at[l]]; \\
    return load(x); \\
  } \\
  INLINE void scatter(T* p, i64v at, T##v v, maskv ok) { \\
    for (int l = 0; l < W; l++) if (ok[l]) p[at[l]] = v[l]; \\
  }
ANY_LANES(f32) ANY_LANES(f64) ANY_LANES(i64) ANY_LANES(i32) ANY_LANES(i16)
ANY_LANES(i8) ANY_LANES(u8) ANY_LANES(u16)
SOME_LANES(i16) SOME_LANES(i8) SOME_LANES(u8) SOME_LANES(u16)
@masked@

INLINE maskv mask(i32v m) { return m; }
INLINE maskv mask(i64v m) { return __builtin_convertvector(m, i32v); }
INLINE maskv mask(i16v m) { return __builtin_convertvector(m, i32v); }
INLINE maskv mask(i8v m) { return __builtin_convertvector(m, i32v); }
INLINE bool mask(bool m) { return m; }
INLINE maskv broadcast(bool x) { return maskv{} - (i32)x; }
INLINE bool any(maskv m) { i32 r = 0; EACH_LANE r |= m[l]; return r; }
INLINE bool all(maskv m) { i32 r = -1; EACH_LANE r &= m[l]; return r; }
INLINE bool any(bool m) { return m; }

#define SELECT(T, M) \\
  INLINE T##v select(maskv m, T##v a, T##v b) { return __builtin_convertvector(m, M) ? a : b; } \\
  INLINE T select(bool m, T a, T b) { return m ? a : b; }
SELECT(f32, i32v) SELECT(i32, i32v) SELECT(f64, i64v) SELECT(i64, i64v) SELECT(i16, i16v) SELECT(i8, i8v)
SELECT(u8, i8v)
INLINE bool select(bool m, bool a, bool b) { return m ? a : b; }

using ::floordiv, ::floormod, ::is_within, ::nonzero;
// Index arithmetic and checks on vectors; only the first n lanes are checked.
INLINE i64v floordiv(i64v a, i64 b) { return a / b + (a % b < 0); }
INLINE i64v floormod(i64v a, i64 b) { return a % b + (a % b < 0 ? i64v{} + b : i64v{}); }
INLINE maskv is_within(i64v at, i64 extent, i64* failure, i64 number, i64 n) {
  const maskv ok = mask((at >= 0) & (at < extent)), lanes = first_lanes(n);
  if (any(lanes & ~ok)) fail(failure, number);
  return ok & lanes;
}
#define NONZERO(T) \\
  INLINE T##v nonzero(T##v divisor, i64* failure, i64 number, i64 n) { \\
    const maskv zero = mask(divisor == 0); \\
    if (any(zero & first_lanes(n))) fail(failure, number); \\
    return select(zero, broadcast((T)1), divisor); \\
  }
NONZERO(i64) NONZERO(i32) NONZERO(i16) NONZERO(i8) NONZERO(u8)

// Bools lie in memory as bytes 0 and 1; half precisions as 16 bits, and are float32 in registers.
INLINE maskv from_bool(u8v v) { return __builtin_convertvector(v, i32v) != 0; }
INLINE u8v to_bool(maskv m) { return __builtin_convertvector(m & 1, u8v); }
INLINE bool from_bool(u8 v) { return v; }
INLINE u8 to_bool(bool m) { return m; }
"""

PLAIN_TAILS = """\
SOME_LANES(f32) SOME_LANES(f64) SOME_LANES(i64) SOME_LANES(i32)"""

# Rows that end inside a vector are everyday work for these two types: one masked instruction each.
AVX512_TAILS = """\
SOME_LANES(i64) SOME_LANES(i32) SOME_LANES(@other@)
INLINE @bits@ low_bits(i64 n) { return (@bits@)(n >= W ? -1 : n <= 0 ? 0 : (1 << n) - 1); }
INLINE @T@v load(const @T@* p, i64 n) { return __builtin_ia32_loadu@suffix@512_mask(p, @T@v{}, low_bits(n)); }
INLINE void store(@T@* p, @T@v v, i64 n) { __builtin_ia32_storeu@suffix@512_mask(p, v, low_bits(n)); }"""

WHERE_INSTRUCTIONS = {
    ("avx512", 16): ("f32", "__builtin_ia32_loadups512_mask(p, f32v{}, __builtin_ia32_cvtd2mask512(ok))"),
    ("avx512", 8): ("f64", "__builtin_ia32_loadupd512_mask(p, f64v{}, __builtin_ia32_cvtd2mask256(ok))"),
    ("avx2", 8): ("f32", "__builtin_ia32_maskloadps256((const f32v*)p, ok)"),
}
"""Of vectors that are one register: the type, and the instruction that leaves lanes of memory alone."""

F16_INSTRUCTIONS = {
    ("avx512", 16): (
        "__builtin_ia32_vcvtph2ps512_mask((i16v)v, f32v{}, -1, 4)",
        "__builtin_ia32_vcvtps2ph512_mask(x, 0, i16v{}, -1)",
    ),
    ("avx2", 8): ("__builtin_ia32_vcvtph2ps256((i16v)v)", "__builtin_ia32_vcvtps2ph256(x, 0)"),
}

EXTREME_INSTRUCTIONS = {
    ("avx512", 16): "__builtin_ia32_@name@ps512_mask(broadcast(bound), x, x, -1, 4)",
    ("avx512", 8): "__builtin_ia32_@name@ps256(broadcast(bound), x)",
    ("avx2", 8): "__builtin_ia32_@name@ps256(broadcast(bound), x)",
}
"""`max` and `min` of vectors that are one register: the second operand where either is a NaN."""


def emit_scalars() -> str:
    """Types and helpers that do not depend on the lane count."""
    return SCALARS


def emit_vectors(machine: Machine, lanes: int, used: Iterable[str]) -> str:
    """Vector types of `lanes` lanes and the math functions in `used` with those they call."""
    numbers = ", ".join(map(str, range(lanes)))
    text = VECTORS.replace("@masked@", _masked(machine, lanes)).replace("@numbers@", numbers)
    text = text.replace("@where@", _lanes_where(machine, lanes))
    text = "\n".join([f"enum {{ W = {lanes} }};", text, *(MATH[name] for name in _closure(used))])
    for kind, element_bytes in (("f32", 4), ("f64", 8)):
        text = text.replace(f"@sqrt_{kind}@", _square_root(machine, lanes * element_bytes, kind))
    for name, comparison in (("max", ">"), ("min", "<")):
        text = text.replace(f"@{name}_f32@", _extreme(machine, lanes, name, comparison))
    text = text.replace("@scale_f32@", _scale(machine, lanes))
    text = text.replace("@f16@", _half_conversions(machine, lanes))
    return text.replace("@sum_each@", _sum_each(lanes))


def _sum_each(lanes: int) -> str:
    """Log2(lanes) rounds that fold pairs of vectors into one: lane i ends as the sum of vector i's lanes."""
    lines, half = [], lanes // 2
    while half:
        source = [(b // half % 2 * lanes) + b // half // 2 * 2 * half + b % half for b in range(lanes)]
        low, high = (", ".join(str(s + shift) for s in source) for shift in (0, half))
        lines.append(f"  const I low{half} = {{{low}}}, high{half} = {{{high}}};")
        for i in range(half):
            pair = f"v[{i}], v[{i + half}]"
            folded = f"__builtin_shuffle({pair}, low{half}) + __builtin_shuffle({pair}, high{half})"
            lines.append(f"  v[{i}] = {folded};")
        half //= 2
    return "\n".join(lines)


def _half_conversions(machine: Machine, lanes: int) -> str:
    """Float16 from and to float32: one instruction each where a vector of float32 is one register."""
    if (machine.name, lanes) not in F16_INSTRUCTIONS:
        return F16_BY_BITS
    widen, narrow = F16_INSTRUCTIONS[machine.name, lanes]
    return f"""\
INLINE f32v from_f16(u16v v) {{ return {widen}; }}
INLINE u16v to_f16(f32v x) {{ return (u16v){narrow}; }}"""


def _square_root(machine: Machine, vector_bytes: int, kind: str) -> str:
    suffix = "ps" if kind == "f32" else "pd"
    if machine.name == "avx512" and vector_bytes == 64:
        return f"return __builtin_ia32_sqrt{suffix}512_mask(x, x, -1, 4);"
    if machine.name == "avx2" and vector_bytes == 32:
        return f"return __builtin_ia32_sqrt{suffix}256(x);"
    scalar = "__builtin_sqrtf" if kind == "f32" else "__builtin_sqrt"
    return f"for (int l = 0; l < W; l++) x[l] = {scalar}(x[l]); return x;"


def _extreme(machine: Machine, lanes: int, name: str, comparison: str) -> str:
    instruction = EXTREME_INSTRUCTIONS.get((machine.name, lanes))
    if instruction is None:
        return f"return bound {comparison} x ? broadcast(bound) : x;"
    return f"return {instruction.replace('@name@', name)};"


def _scale(machine: Machine, lanes: int) -> str:
    """x * 2^n: by an instruction, or by two factors, of which each is a normal number."""
    if machine.name == "avx512" and lanes == 16:
        return "return __builtin_ia32_scalefps512_mask(x, n, x, -1, 4);"
    return """
  i32v i = __builtin_convertvector(n, i32v), half = i >> 1;
  return x * (f32v)((half + 127) << 23) * (f32v)((i - half + 127) << 23);
"""


def _masked(machine: Machine, lanes: int) -> str:
    if machine.name != "avx512":
        return PLAIN_TAILS
    one_register = {16: ("f32", "ps", "unsigned short", "f64"), 8: ("f64", "pd", "unsigned char", "f32")}
    kind, suffix, bits, other = one_register[lanes]
    text = AVX512_TAILS.replace("@T@", kind).replace("@suffix@", suffix)
    return text.replace("@bits@", bits).replace("@other@", other)


def _lanes_where(machine: Machine, lanes: int) -> str:
    """`load_where` of floats: one instruction where the processor has it."""
    kind, instruction = WHERE_INSTRUCTIONS.get((machine.name, lanes), ("", ""))
    others = " ".join(f"LANES_WHERE({other})" for other in ("f32", "f64") if other != kind)
    if not kind:
        return others
    return f"{others}\nINLINE {kind}v load_where(const {kind}* p, maskv ok) {{ return {instruction}; }}"


def _closure(used: Iterable[str]) -> list[str]:
    """`used` and everything it needs, callees first, in one order for every kernel."""
    wanted = set(used)
    pending = list(wanted)
    while pending:
        for need in NEEDS.get(pending.pop(), ()):
            if need not in wanted:
                wanted.add(need)
                pending.append(need)
    return [name for name in MATH if name in wanted]
