"""What a run says about its collectives."""

from __future__ import annotations

import os
from dataclasses import dataclass

from wolong_fx.errors import BadOptionValue

TRANSPORTS = ("auto", "shm", "gloo")

_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class CommSettings:
    """How ranks reach each other.

    transport: "shm" shares memory on one host; "gloo" leaves it to torch; "auto" is the first that can
    arena_mb: size of the memory that is shared; it costs only what is used of it. 0 = half of the machine's
    cache_dir, cache_size_mb: where what is built is kept, as in Options
    """

    transport: str = "auto"
    arena_mb: int = 0
    cache_dir: str = ""
    cache_size_mb: int = 2048

    @classmethod
    def from_environment(cls) -> CommSettings:
        """Settings from the variables WOLONG_COMM_* and WOLONG_CACHE_*.

        Raises BadOptionValue.
        """
        transport = os.environ.get("WOLONG_COMM_TRANSPORT", cls.transport)
        if transport not in TRANSPORTS:
            expected = "one of " + ", ".join(map(repr, TRANSPORTS))
            where = "WOLONG_COMM_TRANSPORT"
            raise BadOptionValue(name="comm.transport", value=transport, where=where, expected=expected)
        arena = os.environ.get("WOLONG_COMM_ARENA_MB", str(cls.arena_mb))
        kept = os.environ.get("WOLONG_CACHE_SIZE_MB", str(cls.cache_size_mb))
        directory = os.environ.get("WOLONG_CACHE_DIR", "")
        return cls(
            transport,
            _megabytes("comm.arena_mb", "WOLONG_COMM_ARENA_MB", arena),
            directory,
            _megabytes("cache_size_mb", "WOLONG_CACHE_SIZE_MB", kept),
        )

    @property
    def arena_bytes(self) -> int:
        if self.arena_mb:
            return self.arena_mb * _MEGABYTE
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _megabytes(name: str, variable: str, value: str) -> int:
    if not value.isdecimal():
        raise BadOptionValue(name=name, value=value, where=variable, expected="a whole number of megabytes")
    return int(value)
