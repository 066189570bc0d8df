"""Python's cycle collector, kept from walking what importing and tracing pile up.

Torch's compiler is half a million objects, a trace of 80 LSTM steps as many again, and nearly all of them
stay. The collector walks them over and over as they grow: 0.75 s of the 4.8 s of such a first call.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

FROZEN_BY_A_PROGRAM = 1000
"""Python 3.12 starts with 375 objects frozen; a program freezes all it has, 5,000 even without an import."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """No automatic collection inside; nests, and does nothing where the program has turned it off.

    The switch is the process's: other threads' garbage waits too. An explicit `gc.collect()` still works.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def count_as_old() -> None:
    """Put all objects into the oldest generation, unwalked: right after imports, whose objects stay.

    `gc.freeze` and `gc.unfreeze` relink lists, in no time. What the program froze itself would be unfrozen:
    then nothing is done.
    """
    if gc.get_freeze_count() < FROZEN_BY_A_PROGRAM:
        gc.freeze()
        gc.unfreeze()
