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
    """

    transport: str = "auto"
    arena_mb: int = 0

    @classmethod
    def from_environment(cls) -> CommSettings:
        """Settings from WOLONG_COMM_TRANSPORT and WOLONG_COMM_ARENA_MB. Raises BadOptionValue."""
        transport = os.environ.get("WOLONG_COMM_TRANSPORT", cls.transport)
        if transport not in TRANSPORTS:
            _refuse("transport", transport, "one of " + ", ".join(map(repr, TRANSPORTS)))
        size = os.environ.get("WOLONG_COMM_ARENA_MB", str(cls.arena_mb))
        if not size.isdecimal():
            _refuse("arena_mb", size, "a whole number of megabytes")
        return cls(transport, int(size))

    @property
    def arena_bytes(self) -> int:
        if self.arena_mb:
            return self.arena_mb * _MEGABYTE
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _refuse(name: str, value: str, expected: str) -> None:
    where = f"WOLONG_COMM_{name.upper()}"
    raise BadOptionValue(name=f"comm.{name}", value=value, where=where, expected=expected)
