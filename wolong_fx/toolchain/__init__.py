"""Building C++ and keeping what was built: the compiler, the processor's instructions, the cache."""

from wolong_fx.toolchain.cache import CacheInfo, KernelCache, cache_key
from wolong_fx.toolchain.compiler import build_library
from wolong_fx.toolchain.isa import choose_isa, isa_flags
from wolong_fx.toolchain.notices import warn_once

__all__ = [
    "CacheInfo",
    "KernelCache",
    "build_library",
    "cache_key",
    "choose_isa",
    "isa_flags",
    "warn_once",
]
