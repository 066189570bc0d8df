"""A pass as text and back: `fold-constants{max_bytes=4096}`; a pipeline is such texts joined by ", ".

A bug report quotes the exact pipeline. Options at their default are left out; options that are functions,
bound where the table is built, are not part of the text (their fields say `repr=False`).
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields, replace
from typing import Any

from wolong_fx.errors import BadPassText, UnknownPass
from wolong_fx.passes.base import Pass

_PASS = re.compile(r"(?P<name>[a-z][a-z0-9-]*)(\{(?P<options>[^{}]*)\})?")
_EXAMPLE = "fold-constants{max_bytes=4096}"


def pass_to_text(a_pass: Pass) -> str:
    """`name` or `name{option=value, ...}` of the options that differ from their defaults."""
    changed = [(f.name, getattr(a_pass, f.name)) for f in _options(a_pass)]
    shown = [f"{n}={v!r}" for (n, v), f in zip(changed, _options(a_pass), strict=True) if v != f.default]
    return f"{a_pass.name}{{{', '.join(shown)}}}" if shown else a_pass.name


def pass_from_text(text: str, known: Iterable[Pass]) -> Pass:
    """The pass of that name among `known`, with the options of the text.

    Raises UnknownPass, naming the nearest; BadPassText for a text of another form or an unknown option.
    """
    match = _PASS.fullmatch(text.strip())
    if not match:
        raise BadPassText(text=text, because="it is not a name with options in braces", example=_EXAMPLE)
    prototype = find_pass(match["name"], known, where="the pipeline's text")
    return replace(prototype, **_read_options(prototype, match["options"] or "", text))  # type: ignore[type-var]


def pipeline_to_text(passes: Iterable[Pass]) -> str:
    """Their texts, in order."""
    return ", ".join(map(pass_to_text, passes))


def pipeline_from_text(text: str, known: Iterable[Pass]) -> tuple[Pass, ...]:
    """The passes of a text that pipeline_to_text wrote; raises as pass_from_text."""
    table = tuple(known)
    texts = re.split(r",\s*(?![^{]*\})", text.strip()) if text.strip() else []
    return tuple(pass_from_text(part, table) for part in texts)


def find_pass(name: str, known: Iterable[Pass], where: str) -> Pass:
    """The pass called `name`; raises UnknownPass, naming the nearest."""
    by_name = {p.name: p for p in known}
    check_names((name,), by_name, where)
    return by_name[name]


def check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises UnknownPass for the first name that is not among `known`."""
    table = sorted(known)
    for name in names:
        if name not in table:
            nearest = difflib.get_close_matches(name, table, n=1, cutoff=0.0)[0]
            raise UnknownPass(name=name, where=where, nearest=nearest)


def _options(a_pass: Pass) -> list[Field[Any]]:
    return [f for f in fields(a_pass) if f.repr]  # type: ignore[arg-type]


def _read_options(a_pass: Pass, text: str, whole: str) -> Mapping[str, object]:
    try:
        keywords = ast.parse(f"f({text})", mode="eval").body.keywords  # type: ignore[attr-defined]
        read = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
    except (SyntaxError, ValueError) as error:
        raise BadPassText(
            text=whole, because=f"its options are not literals: {error}", example=_EXAMPLE
        ) from error
    unknown = read.keys() - {f.name for f in _options(a_pass)}
    if unknown:
        raise BadPassText(
            text=whole, because=f"{a_pass.name!r} has no option {min(unknown)!r}", example=_EXAMPLE
        )
    return read
