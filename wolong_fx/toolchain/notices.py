"""Things a person should hear once, not once a graph."""

from __future__ import annotations

import logging

logger = logging.getLogger("wolong_fx")

_said: set[str] = set()


def warn_once(topic: str, message: str) -> bool:
    """Log a warning unless `topic` was warned of before in this process; True if it was said now."""
    if topic in _said:
        return False
    _said.add(topic)
    logger.warning("%s", message)
    return True
