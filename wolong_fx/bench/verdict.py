"""Whether a goal is met, and how much of it is."""

from __future__ import annotations

from typing import Any


def judge_at_least(goal: str, found: float | None, least: float) -> dict[str, Any]:
    """found: None where it could not be measured."""
    return _judged(goal, found, None if found is None else found / least)


def judge_at_most(goal: str, found: float | None, most: float) -> dict[str, Any]:
    """found: None where it could not be measured."""
    return _judged(goal, found, None if found is None else most / found)


def _judged(goal: str, found: float | None, share: float | None) -> dict[str, Any]:
    """share: of the goal that is reached, above 1 where it is passed."""
    return {"goal": goal, "found": found, "share": share, "is_met": None if share is None else share >= 1}
