"""Golden files: text that a test makes, compared with what a person accepted before.

The project's tests pass `pytest --accept` on: the files are then written instead of compared; read their
diff.
"""

from __future__ import annotations

import difflib
from pathlib import Path


def assert_golden(text: str, path: Path, accept: bool = False) -> None:
    """Assert that `text` is what the golden file holds; with `accept`, make it so."""
    if accept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    assert path.exists(), f"no golden file {path}: run pytest --accept, then read what it wrote"
    accepted = path.read_text()
    lines = difflib.unified_diff(accepted.splitlines(), text.splitlines(), "accepted", "now", lineterm="")
    shown = "\n".join(lines)
    assert text == accepted, f"{path} differs; if that is right, run pytest --accept\n{shown}"
