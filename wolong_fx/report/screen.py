"""Words and bars for a terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping

from wolong_fx import Stats

_BAR = 40  # columns of the longest bar
_REASON = 90


def show_status(line: str) -> None:
    """What is going on, on a terminal only, in a line that the next one replaces; "" clears it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def bar_lines(rows: Mapping[str, tuple[float, str]]) -> list[str]:
    """One bar a row: name, a length in proportion, words; no colours, and ASCII where there is no more."""
    longest, widest = max(value for value, _ in rows.values()), max(map(len, rows))
    mark = _mark()
    return [
        f"  {name:<{widest}}  {mark * max(1, round(_BAR * value / longest)):<{_BAR}} {words}"
        for name, (value, words) in rows.items()
    ]


def _mark() -> str:
    try:
        "█".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return "#"
    return "█"


def ratio_words(speedup: float) -> str:
    """A speed-up in words that do not flatter."""
    if speedup >= 1.05:
        return f"{speedup:.1f}x as fast as"
    return "as fast as" if speedup > 0.95 else f"SLOWER, {speedup:.2f}x the speed of"


def work_words(stats: Stats) -> str:
    """How much of a model runs in our kernels, and the commonest reason for what does not."""
    fallen = sum(stats.fallbacks.values())
    counts = ", ".join(f"{count} {role}" for role, count in stats.launches.items())
    words = f"kernel launches: {counts}" if any(stats.launches.values()) else "no kernel, it runs eagerly"
    if not fallen:
        return f"{words}; 0 fallbacks"
    reason = textwrap.shorten(stats.fallbacks.most_common(1)[0][0], _REASON, placeholder=" ...")
    return f"{words}; {fallen} fell back: {reason}"
