"""Figures that may only become smaller, in a file that people read the differences of.

The file: `{version: {name: {figure: n}}}`, a name a line. A version that is not in it is held to the last one
before it: compilers count differently, and mostly get better. The project's tests pass `pytest --tighten` on:
figures that have become smaller, or are new, are then written instead of compared. None is ever made larger:
where more is right, delete the name by hand, so that the deletion stands in the difference and is answered
for.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock
from packaging.version import Version

Figures = Mapping[str, int]
_HOW = "run pytest with --tighten"


class LooseBudget(UserWarning):
    """A budget is larger than what is needed."""


@dataclass(frozen=True)
class Ratchet:
    """The figures of one version.

    version: of what makes them, such as a compiler: "3.7.1" is held to "3.7" or the last before it
    """

    path: Path
    version: str

    def hold(self, name: str, figures: Figures, *, tighten: bool = False) -> None:
        """Assert that no figure is larger than its budget; warns where one has become smaller.

        tighten: lower the budget instead, and put in what is missing
        """
        if tighten:
            self._tighten(name, figures)
        budget = self._budgets().get(name)
        assert budget is not None, f"{name!r} has no budget in {self.path}: {_HOW}, then read its difference"
        assert budget.keys() == figures.keys(), f"{name!r}: other figures than in {self.path}; {_HOW}"
        worse = {k: (n, budget[k]) for k, n in figures.items() if n > budget[k]}
        shown = ", ".join(f"{k} {n} instead of {limit}" for k, (n, limit) in worse.items())
        assert not worse, f"{name!r} needs more than before: {shown}. If that is right, delete it from " + (
            f"{self.path} and {_HOW}."
        )
        better = ", ".join(f"{k} {n} instead of {budget[k]}" for k, n in figures.items() if n < budget[k])
        if better:
            warnings.warn(LooseBudget(f"{name!r} needs less than before: {better}; {_HOW}"), stacklevel=2)

    def _budgets(self) -> dict[str, dict[str, int]]:
        known = self._read()
        before = [v for v in known if Version(v) <= Version(self.version)]
        return known[max(before, key=Version)] if before else {}

    def _tighten(self, name: str, figures: Figures) -> None:
        release = ".".join(map(str, Version(self.version).release[:2]))
        with FileLock(Path(gettempdir()) / f"{self.path.name}.lock"):
            known = self._read()
            names = known.setdefault(release, {})
            before = names.get(name, {})
            names[name] = {k: min(n, before.get(k, n)) for k, n in figures.items()}
            new = self.path.with_suffix(".new")
            new.write_text(_printed(known))
            new.replace(self.path)  # whoever reads meanwhile reads a whole file

    def _read(self) -> dict[str, dict[str, dict[str, int]]]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}


def _printed(known: dict[str, dict[str, dict[str, int]]]) -> str:
    """As JSON, a name a line and all in order."""
    versions = []
    for version in sorted(known, key=Version):
        names = known[version]
        lines = [f"  {json.dumps(n)}: {json.dumps(names[n])}" for n in sorted(names)]
        versions.append(f" {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(versions) + "\n}\n"
