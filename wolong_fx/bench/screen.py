"""A measured row, for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import floor
from typing import Any

from wolong_fx.bench.contenders import OURS


def row_lines(result: Mapping[str, Any]) -> list[str]:
    """Times, ratios, verdicts, errors and the parts of the first call."""
    return [
        "",
        f"{result['title']}  ({result['row']})",
        *_times(result),
        *(f"  {name:<22} missing: {why}" for name, why in result["missing"].items()),
        *map(verdict_line, result["verdicts"]),
        *_notes(result),
    ]


def _times(result: Mapping[str, Any]) -> Iterator[str]:
    for name, spread in result["ms"].items():
        ratio = result["speedup"].get(name)
        times = f"{ratio['median']:7.2f}x" if ratio else " " * 8
        first = result["first_call_s"].get(name, 0.0)
        low, middle, high = spread["low"], spread["median"], spread["high"]
        yield f"  {name:<22} {middle:9.4f} ms ({low:.4f} to {high:.4f}) {times}  first call {first:.1f} s"
    if result["kernel_ms"] is not None:
        yield f"  {'our kernels alone':<22} {result['kernel_ms']:9.4f} ms"


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """Met, or missed and by how much."""
    if verdict["share"] is None:
        return f"  unknown  {verdict['goal']}: nothing to compare with"
    found = f"{verdict['found']:.4g}"
    if verdict["is_met"]:
        return f"  met      {verdict['goal']}: {found}"
    return f"  MISSED   {verdict['goal']}: {found}, {floor(100 * verdict['share'])} % of the goal"


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    if result["error_over_eagers"] is not None:
        yield f"  error against float64: {result['error_over_eagers']:.2f}x eager's"
    if OURS in result["missing"] or "compile_s" not in result:
        return
    launches = ", ".join(f"{count} {role}" for role, count in result["kernel_launches"].items())
    yield f"  kernel launches: {launches}; fallbacks: {result['fallbacks'] or 'none'}"
    parts = (f"{part} {result['compile_s'][part]:.2f}" for part in ("dynamo", "aot", "ours", "g++"))
    yield f"  first call, seconds: {', '.join(parts)} ({result['first_call_s']['caches']} caches)"
