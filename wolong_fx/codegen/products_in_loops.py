"""Whether a product is better computed in the steps of a loop than before it, for all of them.

Before it, the product is written once and read once. Where all caches hold it that costs little; where not, a
twentieth of an LSTM of 64 rows on a calm machine, and half of it beside neighbours that use the caches too.
In a step, a micro-kernel of some rows uses every weight that it loads once a row: from about a dozen rows on,
multiply-adds take so much longer than the weights' way from a cache that processors fetch them meanwhile.
docs/decisions/0026 has the measurements.
"""

from __future__ import annotations

from functools import cache

from wolong_fx.passes.loops.find_staying import Cost
from wolong_fx.runtime import MachineCosts, team_size
from wolong_fx.runtime.machine_costs import usual_costs
from wolong_fx.toolchain import choose_isa

HIDDEN = 2.5
"""Times as long as reading the weights takes must arithmetic take for the reading to cost next to nothing."""

LEFT = 0.25
"""Of the last cache, what is left to values stacked for a loop: its operands and results pass through too."""

SHARE = 0.5
"""Of the second caches that weights may take: states and the inputs of a step pass through them too."""


def is_worth_steps(cost: Cost) -> bool:
    """True of products that this machine computes sooner step by step."""
    return is_faster_in_steps(cost, *_machine())


def is_faster_in_steps(cost: Cost, costs: MachineCosts, threads: int) -> bool:
    """The same of a machine with these costs, where each thread of a team needs its part of the weights."""
    arithmetic = cost.multiply_adds / (threads * costs.fma_rate)
    reading = cost.weight_bytes / _weight_rate(cost.weight_bytes, costs, threads)
    return arithmetic >= HIDDEN * reading and cost.stacked_bytes > LEFT * costs.l3_bytes


def _weight_rate(weight_bytes: int, costs: MachineCosts, threads: int) -> float:
    """Bytes a second that a team reads, in every step again."""
    if weight_bytes <= SHARE * threads * costs.l2_bytes:
        return threads * costs.l2_rate
    return costs.team_l3_rate if weight_bytes <= costs.l3_bytes else costs.team_dram_rate


@cache
def _machine() -> tuple[MachineCosts, int]:
    threads = team_size()
    return usual_costs(choose_isa("auto"), threads), threads
