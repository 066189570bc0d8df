// Element-wise reductions of n arrays, always in the order of the ranks: the same inputs give the same bits
// on every rank, every time, however the work is cut.
#pragma once
#include "system.h"

enum class DType : u32 { F32, F64, F16, BF16, I8, I16, I32, I64, U8, BOOL };
enum class ReduceOp : u32 { SUM, AVERAGE, PRODUCT, MINIMUM, MAXIMUM };

constexpr u64 ELEMENT_BYTES[] = {4, 8, 2, 2, 1, 2, 4, 8, 1, 1};

inline u64 bytes_of(DType dtype) {
    return ELEMENT_BYTES[u32(dtype)];
}

struct BFloat16 {
    u16 bits;
};

// How elements of a type are accumulated: 16-bit floats in float, integers modulo 2^bits as torch has it.
template <class E>
struct Arithmetic {
    using Sum = E;
    static Sum widen(E e) { return e; }
    static E narrow(Sum s) { return s; }
};

template <>
struct Arithmetic<_Float16> {
    using Sum = float;
    static Sum widen(_Float16 e) { return Sum(e); }
    static _Float16 narrow(Sum s) { return _Float16(s); }
};

template <>
struct Arithmetic<BFloat16> {
    using Sum = float;
    static Sum widen(BFloat16 e) { return __builtin_bit_cast(float, u32(e.bits) << 16); }
    static BFloat16 narrow(Sum s) {
        u32 bits = __builtin_bit_cast(u32, s);
        u32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
        return {u16(s == s ? rounded : bits >> 16 | 0x40)};
    }
};

struct Plus {
    template <class S>
    static S apply(S a, S b) {
        return a + b;
    }
};

struct Times {
    template <class S>
    static S apply(S a, S b) {
        return a * b;
    }
};

// A NaN on any rank is the result, as in torch.minimum and torch.maximum.
struct Lesser {
    template <class S>
    static S apply(S a, S b) {
        return a < b || a != a ? a : b;
    }
};

struct Greater {
    template <class S>
    static S apply(S a, S b) {
        return a > b || a != a ? a : b;
    }
};

// Integers wrap in arithmetic of their unsigned kin, where that is defined.
template <class E>
struct Wrapping {
    using Type = E;
};
template <>
struct Wrapping<i8> {
    using Type = u8;
};
template <>
struct Wrapping<i16> {
    using Type = u16;
};
template <>
struct Wrapping<i32> {
    using Type = u32;
};
template <>
struct Wrapping<i64> {
    using Type = u64;
};

struct Arrays {
    const void* const* sources;
    u32 source_count;
    void* const* targets;
    u32 target_count;
};

constexpr u64 BLOCK = 64;  // elements that stay in registers while the sources are walked

template <class E, class Op, bool average>
void reduce_block(const Arrays& arrays, u64 at, u64 length) {
    using A = Arithmetic<E>;
    typename A::Sum sums[BLOCK];
    auto source = (const E*)arrays.sources[0] + at;
    for (u64 j = 0; j < length; j++) sums[j] = A::widen(source[j]);
    for (u32 k = 1; k < arrays.source_count; k++) {
        source = (const E*)arrays.sources[k] + at;
        for (u64 j = 0; j < length; j++) sums[j] = Op::apply(sums[j], A::widen(source[j]));
    }
    if (average)
        for (u64 j = 0; j < length; j++) sums[j] = sums[j] / typename A::Sum(arrays.source_count);
    for (u32 k = 0; k < arrays.target_count; k++) {
        auto target = (E*)arrays.targets[k] + at;
        for (u64 j = 0; j < length; j++) target[j] = A::narrow(sums[j]);
    }
}

template <class E, class Op, bool average = false>
void reduce_range(const Arrays& arrays, u64 begin, u64 end) {
    u64 at = begin;
    for (; at + BLOCK <= end; at += BLOCK) reduce_block<E, Op, average>(arrays, at, BLOCK);
    if (at < end) reduce_block<E, Op, average>(arrays, at, end - at);
}

template <class E>
void reduce_integers(ReduceOp op, const Arrays& arrays, u64 begin, u64 end) {
    using Unsigned = typename Wrapping<E>::Type;
    switch (op) {
        case ReduceOp::PRODUCT: return reduce_range<Unsigned, Times>(arrays, begin, end);
        case ReduceOp::MINIMUM: return reduce_range<E, Lesser>(arrays, begin, end);
        case ReduceOp::MAXIMUM: return reduce_range<E, Greater>(arrays, begin, end);
        default: return reduce_range<Unsigned, Plus>(arrays, begin, end);
    }
}

template <class E>
void reduce_floats(ReduceOp op, const Arrays& arrays, u64 begin, u64 end) {
    switch (op) {
        case ReduceOp::SUM: return reduce_range<E, Plus>(arrays, begin, end);
        case ReduceOp::AVERAGE: return reduce_range<E, Plus, true>(arrays, begin, end);
        case ReduceOp::PRODUCT: return reduce_range<E, Times>(arrays, begin, end);
        case ReduceOp::MINIMUM: return reduce_range<E, Lesser>(arrays, begin, end);
        case ReduceOp::MAXIMUM: return reduce_range<E, Greater>(arrays, begin, end);
    }
}

// Booleans: a sum is any, a product is all.
inline void reduce_booleans(ReduceOp op, const Arrays& arrays, u64 begin, u64 end) {
    bool all = op == ReduceOp::PRODUCT || op == ReduceOp::MINIMUM;
    all ? reduce_range<u8, Lesser>(arrays, begin, end) : reduce_range<u8, Greater>(arrays, begin, end);
}

// Elements [begin, end) of all sources, reduced, to the same places of all targets; a target may be a source.
inline void reduce(DType dtype, ReduceOp op, const Arrays& arrays, u64 begin, u64 end) {
    switch (dtype) {
        case DType::F32: return reduce_floats<float>(op, arrays, begin, end);
        case DType::F64: return reduce_floats<double>(op, arrays, begin, end);
        case DType::F16: return reduce_floats<_Float16>(op, arrays, begin, end);
        case DType::BF16: return reduce_floats<BFloat16>(op, arrays, begin, end);
        case DType::I8: return reduce_integers<i8>(op, arrays, begin, end);
        case DType::I16: return reduce_integers<i16>(op, arrays, begin, end);
        case DType::I32: return reduce_integers<i32>(op, arrays, begin, end);
        case DType::I64: return reduce_integers<i64>(op, arrays, begin, end);
        case DType::U8: return reduce_integers<u8>(op, arrays, begin, end);
        case DType::BOOL: return reduce_booleans(op, arrays, begin, end);
    }
}
