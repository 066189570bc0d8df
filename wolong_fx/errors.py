"""The error catalogue: one class is one message template is one test.

A message says what is wrong, where, and what to do; facts are quoted with `!r`.
"""

from __future__ import annotations


class WolongError(Exception):
    """Base of every error that Wolong FX raises on purpose."""

    template = "{message}"

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        super().__init__(self.template.format(**facts))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.facts)


def _rebuild(kind: type[WolongError], facts: dict[str, object]) -> WolongError:
    """Errors cross process boundaries (spawned workers), where the default pickling loses keyword facts."""
    return kind(**facts)


class UnknownOption(WolongError):
    """An option that Wolong FX does not have."""

    template = "unknown option {name!r} in {where}; did you mean {nearest!r}? `wolong options` lists all."


class BadOptionValue(WolongError):
    """A known option with a value it cannot take."""

    template = "option {name!r} cannot be {value!r} in {where}: expected {expected}."


class InvalidProgram(WolongError):
    """A program that breaks a rule of the IR: always a defect of the step that made it."""

    template = "invalid program after {step!r}: rule {rule!r} broken by {culprit}."


class RaceFound(WolongError):
    """Two virtual blocks of one epoch touch the same bytes, one of them writing."""

    template = "race in program {program!r}: {first} and {second} both touch {buffer!r} between barriers."


class UnsupportedOperator(WolongError):
    """An operator met by a lowering that does not know it; the graph falls back around it."""

    template = "cannot lower {operator!r}: {because}."
