"""Device functions that emitted kernels call: what the IR's operations mean where Triton has no word for it.

Only this module and `barrier` hold Triton code by hand. Elementary functions come from `libdevice`, which
every backend of Triton provides under one name; Triton's own `exp` and `log` are approximations.
"""

# What Triton compiles is not what Python's type checkers see: libdevice's functions have no bodies there.
# pyright: reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl
from triton.language.extra import libdevice

# ---- integers


@triton.jit
def floor_div(x, y):
    """x // y rounded down; Triton's `//` rounds towards zero."""
    rest = x % y
    return x // y - ((rest != 0) & ((rest < 0) != (y < 0))).to(x.dtype)


@triton.jit
def floor_mod(x, y):
    """x % y with the sign of y; Triton's `%` has the sign of x."""
    rest = x % y
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)


@triton.jit
def integer_power(x, y):
    """x ** y, wrapping around; to a negative power, only 1 and -1 are not 0."""
    square, power, exponent = x, x * 0 + 1, tl.where(y < 0, 0, y)
    for _ in tl.static_range(6):  # pyright: ignore
        power = tl.where((exponent & 1) != 0, power * square, power)
        square *= square
        exponent = exponent >> 1
    sign = tl.where((y & 1) != 0, x, x * x)
    return tl.where(y < 0, tl.where((x == 1) | (x == -1), sign, 0), power)


@triton.jit
def sign_of_integer(x):
    """-1, 0 or 1."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


# ---- floats


@triton.jit
def divide(x, y):
    """x / y, correctly rounded; Triton's `/` of float32 is not."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def square_root(x):
    """The square root, correctly rounded; Triton's of float32 is not."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def reciprocal(x):
    """1 / x, correctly rounded."""
    return divide(tl.full((), 1.0, x.dtype), x)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return reciprocal(1.0 + libdevice.exp(-x))


@triton.jit
def sign(x):
    """-1, 0 or 1, and 0 of NaN, as torch has it."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def remainder(x, y):
    """The remainder with the sign of y."""
    rest = libdevice.fmod(x, y)
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)


@triton.jit
def floor_divide(x, y):
    """x / y rounded down as Python rounds it: exact where the quotient itself was rounded up to an
    integer."""
    rest = libdevice.fmod(x, y)
    quotient = divide(x - rest, y)
    quotient = tl.where((rest != 0) & ((rest < 0) != (y < 0)), quotient - 1, quotient)
    down = libdevice.floor(quotient)
    down = tl.where(quotient - down > 0.5, down + 1, down)
    zero = libdevice.copysign(x * 0, divide(x, y))
    return tl.where(y == 0, divide(x, y), tl.where(quotient != 0, down, zero))


# ---- what reductions combine with


@triton.jit
def add(a, b):
    """The sum."""
    return a + b


@triton.jit
def multiply(a, b):
    """The product."""
    return a * b


@triton.jit
def maximum(a, b):
    """The larger one; NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    """The smaller one; NaN if either is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def either(a, b):
    """Bitwise or."""
    return a | b


@triton.jit
def both(a, b):
    """Bitwise and."""
    return a & b


@triton.jit
def first_largest(a, at_a, b, at_b):
    """The larger value and its position; NaN is largest, the first of equals wins."""
    is_same = (a == b) | ((a != a) & (b != b))
    takes_b = (b > a) | ((b != b) & (a == a)) | (is_same & (at_b < at_a))
    return tl.where(takes_b, b, a), tl.where(takes_b, at_b, at_a)


@triton.jit
def first_smallest(a, at_a, b, at_b):
    """The smaller value and its position; NaN is smallest, the first of equals wins."""
    is_same = (a == b) | ((a != a) & (b != b))
    takes_b = (b < a) | ((b != b) & (a == a)) | (is_same & (at_b < at_a))
    return tl.where(takes_b, b, a), tl.where(takes_b, at_b, at_a)
