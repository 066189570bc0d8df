"""The one settings object. Field name == torch.compile option key == Hydra key == WOLONG_<KEY>."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from wolong_fx.errors import BadOptionValue, UnknownOption

CHOICES: Mapping[str, tuple[str, ...]] = {
    "target": ("auto", "cpu", "triton", "reference"),
    "isa": ("auto", "avx512", "avx2", "portable"),
    "dump": ("graph", "program", "source"),
    "verify": ("versions", "always"),
}


@dataclass(frozen=True)
class Options:
    """How a model is compiled. Frozen and hashable: it is part of the cache key.

    target: "auto": "cpu" (C++) or "triton" (GPUs), as tensors live; "reference" interprets (slow, the oracle)
    threads: size of the thread team; 0 = as many processors as this process may use
    isa: instruction set of the CPU target; "auto" = the best this machine has
    disable: names of passes and steps not to run (`wolong passes` lists them)
    dump: which artefacts to write: "graph", "program", "source"
    dump_dir: the directory they are written to
    cache_dir: where kernels are kept; "" = ~/.cache/wolong_fx
    cache_size_mb: kernels used longest ago are deleted above this size
    min_ops: partitions of fewer operators stay eager
    verify: "versions" trusts weights until identity, memory or version change; "always" checks all anew

    What is computed from weights alone is kept between inference calls, and computed again when a parameter
    is another object, lies elsewhere, or its version counter (`Tensor._version`) moved: as optimisers,
    `load_state_dict`, `copy_` under no_grad and `p.data = other` make it. Writes that move no counter, in
    place through `p.data` or from C++, are not seen: then set verify to "always". It also sends every call
    through Dynamo's guards, where `optimize` otherwise takes a shorter way, and sees methods that were
    replaced, which Dynamo does not guard (see `optimize`).
    """

    target: str = "auto"
    threads: int = 0
    isa: str = "auto"
    disable: tuple[str, ...] = ()
    dump: tuple[str, ...] = ()
    dump_dir: str = "wolong_dump"
    cache_dir: str = ""
    cache_size_mb: int = 2048
    min_ops: int = 2
    verify: str = "versions"

    @classmethod
    def of(cls, *, where: str = "options", **values: object) -> Options:
        """Options from keywords over the environment's; raises UnknownOption, BadOptionValue."""
        known = {f.name: f for f in fields(cls)}
        merged = _from_env() | {name: (value, where) for name, value in values.items()}
        checked: dict[str, object] = {}
        for name, (value, origin) in merged.items():
            if name not in known:
                raise UnknownOption(name=name, where=origin, nearest=_nearest(name, known))
            checked[name] = _checked(name, value, known[name].default, origin)
        return cls(**checked)  # type: ignore[arg-type]


class OptionRow(NamedTuple):
    """One option as people are shown it: `wolong options` and docs/environment.md."""

    name: str
    variable: str
    default: object
    meaning: str


def option_table() -> list[OptionRow]:
    """Every option with its environment variable, its default and the line of Options' docstring about it."""
    meanings = dict(re.findall(r"^ *(\w+): (.+)$", Options.__doc__ or "", re.MULTILINE))
    return [
        OptionRow(f.name, f"WOLONG_{f.name.upper()}", f.default, meanings.get(f.name, ""))
        for f in fields(Options)
    ]


def is_enabled() -> bool:
    """False when WOLONG=0: the kill switch that leaves every model eager."""
    return os.environ.get("WOLONG", "1") != "0"


def _from_env() -> dict[str, tuple[object, str]]:
    prefix = "WOLONG_"
    names = {f.name for f in fields(Options)}
    found = {
        key[len(prefix) :].lower(): (value, key)
        for key, value in os.environ.items()
        if key.startswith(prefix)
    }
    return {name: pair for name, pair in found.items() if name in names}


def _nearest(name: str, known: Mapping[str, object]) -> str:
    return (difflib.get_close_matches(name, known, n=1, cutoff=0.0) or sorted(known))[0]


def _checked(name: str, value: object, default: object, where: str) -> object:
    if isinstance(default, tuple):
        return _checked_tuple(name, value, where)
    if isinstance(default, int):
        return _checked_int(name, value, where)
    if not isinstance(value, str) or (name in CHOICES and value not in CHOICES[name]):
        raise BadOptionValue(name=name, value=value, where=where, expected=_expected(name, "a string"))
    return value


def _checked_int(name: str, value: object, where: str) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal():
        raise BadOptionValue(name=name, value=value, where=where, expected="a whole number, 0 or more")
    return int(text)


def _checked_tuple(name: str, value: object, where: str) -> tuple[str, ...]:
    items = [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(v, str) for v in items):
        raise BadOptionValue(name=name, value=value, where=where, expected="names separated by commas")
    wrong = [v for v in items if name in CHOICES and v not in CHOICES[name]]
    if wrong:
        raise BadOptionValue(name=name, value=wrong[0], where=where, expected=_expected(name, "names"))
    return tuple(items)


def _expected(name: str, otherwise: str) -> str:
    return "one of " + ", ".join(repr(c) for c in CHOICES[name]) if name in CHOICES else otherwise
