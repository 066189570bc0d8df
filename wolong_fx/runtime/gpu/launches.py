"""What a call launches: kernels, in order, some of them again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageLaunch:
    """A launch of one stage.

    kernel: its name
    blocks: virtual blocks, each of which gets a physical one
    """

    kernel: str
    blocks: int


@dataclass(frozen=True)
class StageLoop:
    """Launches that are repeated; those at depth d take the trip's number as `t{d}`."""

    trips: int
    body: tuple[StageLaunch | StageLoop, ...]


def count_launches(items: Sequence[StageLaunch | StageLoop]) -> int:
    """Launches of a call, loops unrolled."""
    return sum(i.trips * count_launches(i.body) if isinstance(i, StageLoop) else 1 for i in items)


def kernels_of(items: Sequence[StageLaunch | StageLoop], depth: int = 0) -> dict[str, tuple[int, int]]:
    """By name of each kernel the blocks of its grid and how many loops are around it."""
    found: dict[str, tuple[int, int]] = {}
    for item in items:
        if isinstance(item, StageLoop):
            found |= kernels_of(item.body, depth + 1)
        else:
            found[item.kernel] = item.blocks, depth
    return found


def deepest(items: Sequence[StageLaunch | StageLoop]) -> int:
    """The largest number of loops around a launch."""
    return max((depth for _, depth in kernels_of(items).values()), default=0)
