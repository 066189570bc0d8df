"""LSTM-80: 80 steps of a per-gate LSTM, about 1,700 operators, against eager, Inductor and nn.LSTM.

    python benchmarks/lstm80.py --json
    python benchmarks/lstm80.py --batch 16 --hidden 256 --write benchmarks/results/lstm80_b16.json

Contenders take turns; medians and quartiles of at least 30 samples; ratios are paired round by round.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import wolong_fx
from wolong_fx.report.measure import Contest, add_output_arguments, machine, measure_interleaved, publish
from wolong_fx.testing.models import GateLSTM, same_as_nn_lstm

OURS = "wolong"


def main() -> None:
    """Measure and report."""
    arguments = _parser().parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    publish(measure(arguments), arguments, _screen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=0, help="of torch and of the kernel; 0 = all")
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out, e.g. inductor")
    add_output_arguments(parser)
    return parser


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """All contenders on the same weights and input."""
    torch.manual_seed(0)
    eager = GateLSTM(arguments.hidden, arguments.steps).eval()
    x_TBI = eager.example_input(arguments.batch)
    contenders: dict[str, nn.Module] = {"eager": eager, "nn.LSTM": same_as_nn_lstm(eager).eval()}
    compile_s: dict[str, float] = {}
    contenders[OURS], compile_s[OURS] = _compiled(eager, x_TBI, wolong_fx.optimize)
    if "inductor" not in arguments.without:
        contenders["inductor"], compile_s["inductor"] = _compiled(eager, x_TBI, torch.compile)
    _say("measuring")
    contest = measure_interleaved(
        {name: _caller(model, x_TBI) for name, model in contenders.items() if name not in arguments.without},
        arguments.rounds,
        sample_ms=20,
        progress=_say,
    )
    return {
        "benchmark": "lstm80",
        "steps": arguments.steps,
        "batch": arguments.batch,
        "hidden": arguments.hidden,
        "machine": machine(),
        "ms": contest.as_json(),
        "speedup": _speedups(contest),
        "first_call_s": compile_s,
        **_what_we_did(contenders[OURS]),
        **_errors(contenders, eager, x_TBI),
    }


def _compiled(eager: GateLSTM, x_TBI: Tensor, compiler: Callable[..., Any]) -> tuple[nn.Module, float]:
    """A compiled twin of the model, and the seconds of its first call with empty caches."""
    _say(f"compiling with {compiler.__module__}.{compiler.__name__}")
    twin = GateLSTM(eager.hidden, eager.steps).eval()
    twin.load_state_dict(eager.state_dict())
    with tempfile.TemporaryDirectory() as empty:
        os.environ["WOLONG_CACHE_DIR"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        compiled = compiler(twin)
        start = perf_counter()
        compiled(x_TBI)
        return compiled, perf_counter() - start


def _caller(model: nn.Module, x_TBI: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> object:
        return model(x_TBI)

    return call


def _speedups(contest: Contest) -> dict[str, dict[str, float]]:
    others = [name for name in contest.samples if name != OURS]
    return {name: vars(contest.ratio(name, OURS)) for name in others}


def _what_we_did(model: nn.Module) -> dict[str, object]:
    stats = wolong_fx.stats(model)
    seconds = {step: s for ledger in stats.ledgers for step, s in ledger.timings.items()}
    return {
        "kernel_launches": stats.kernels_per_call,
        "fallbacks": dict(stats.fallbacks),
        "memory_bytes": stats.memory,
        "compile_s_by_step": seconds,
    }


def _errors(contenders: dict[str, nn.Module], eager: GateLSTM, x_TBI: Tensor) -> dict[str, object]:
    """Largest distance of each contender's states from float64."""
    exact = GateLSTM(eager.hidden, eager.steps).double()
    exact.load_state_dict(eager.state_dict())
    truth_TBH = exact(x_TBI.double())[0]
    error = {name: (model(x_TBI)[0] - truth_TBH).abs().max().item() for name, model in contenders.items()}
    return {"error": error, "error_over_eagers": error[OURS] / error["eager"]}


def _screen(results: Mapping[str, Any]) -> str:
    ms, speedup = results["ms"], results["speedup"]
    lines = [f"LSTM-{results['steps']}, batch {results['batch']}, hidden {results['hidden']}"]
    for name, spread in ms.items():
        ratio = "" if name == OURS else f"   {OURS} is {speedup[name]['median']:.1f}x faster"
        low, middle, high = spread["low"], spread["median"], spread["high"]
        lines.append(f"  {name:10} {middle:8.3f} ms  ({low:.3f} to {high:.3f}){ratio}")
    seconds = results["first_call_s"]
    first_calls = ", ".join(f"{name} {s:.1f} s" for name, s in seconds.items())
    return "\n".join(
        (
            *lines,
            f"  kernel launches a call: {results['kernel_launches']}",
            f"  fallbacks: {results['fallbacks'] or 'none'}",
            f"  first call with empty caches: {first_calls}",
            f"  error against float64: {results['error_over_eagers']:.2f}x eager's",
        )
    )


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
