"""What calling a kernel costs beside the kernel: by us (goal: under 2 us for 8 tensors) and by Dynamo; and
what a whole call, and a whole step of training, of small models cost through each door.

Our overhead = call - time inside the kernel - allocation of its outputs, each the least of many short runs:
other work on the machine only ever adds. Dynamo's = a torch.compile call - the call it ends in.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter_ns

import torch
from torch import nn

from wolong_fx import backend, optimize
from wolong_fx.options import Options
from wolong_fx.report.measure import add_output_arguments, machine, publish
from wolong_fx.runtime import Executor, Kernel, KernelStep, Slot, load_kernel, team_size
from wolong_fx.testing.handwritten import eight_tensors

GOAL_NS = 2000.0
CALLS, RUNS = 200, 400
SETTLING_CALLS = 10
"""After which optimize() has found its way past Dynamo, and a kernel whether its team pays."""


def least_ns(call: Callable[[], object], calls: int = CALLS, runs: int = RUNS) -> float:
    """Nanoseconds a call, in the fastest of `runs` runs of `calls`."""
    best = float("inf")
    for _ in range(runs):
        start = perf_counter_ns()
        for _ in range(calls):
            call()
        best = min(best, (perf_counter_ns() - start) / calls)
    return best - EMPTY_LOOP_NS


EMPTY_LOOP_NS = 0.0
EMPTY_LOOP_NS = least_ns(lambda: None)


def inputs() -> list[torch.Tensor]:
    """Six vectors of 16."""
    return [torch.randn(16) for _ in range(6)]


def kernel_ns(kernel: Kernel, tensors: Sequence[torch.Tensor], threads: int, times: int = 2000) -> float:
    """Nanoseconds inside the kernel: it calls itself, from C."""
    repeat = kernel.library.wolong_repeat
    outputs = [torch.empty(16) for _ in range(2)]
    arena = torch.zeros(kernel.image.arena_bytes, dtype=torch.uint8)
    addresses = [t.data_ptr() for t in (arena, arena, *tensors, *outputs)]
    block = (ctypes.c_void_p * len(addresses))(*addresses)
    return least_ns(lambda: repeat(block, threads, ctypes.c_long(times)), calls=1, runs=50) / times


def measure_call(threads: int) -> dict[str, float]:
    """A kernel of six inputs and two outputs, launched by itself and as the only step of an executor.

    So small a kernel ends on one thread whatever it was cut for, by way of the guard that finds that out.
    """
    kernel, tensors = load_kernel(eight_tensors(threads=threads), Options.of()), inputs()
    executor = Executor([KernelStep(kernel, (0, 1, 2, 3, 4, 5), (6, 7))], range(6), (Slot(6), Slot(7)))
    inside = min(kernel_ns(kernel, tensors, plan) for plan in {1, threads})
    allocation = least_ns(kernel.allocate_outputs)
    launch = least_ns(lambda: kernel.launch(tensors))
    boxed = least_ns(lambda: executor([*tensors]))
    return {
        "launch_ns": launch,
        "kernel_ns": inside,
        "allocation_ns": allocation,
        "overhead_ns": launch - inside - allocation,
        "overhead_boxed_ns": boxed - inside - allocation,
    }


def two_sums(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor, e: torch.Tensor, f: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What eight_tensors computes, for torch.compile."""
    return a + b + c, d + e + f


def measure_dynamo() -> dict[str, float | int]:
    """The same kernel reached through torch.compile; what it ends in is called directly for comparison."""
    ends: list[Callable[..., object]] = []

    def remember(gm: torch.fx.GraphModule, example_inputs: Sequence[torch.Tensor]) -> Callable[..., object]:
        ends.append(backend.wolong(gm, example_inputs))
        return ends[-1]

    compiled, tensors = torch.compile(two_sums, backend=remember), inputs()
    graphs_before = len(backend.torch_compile_record.graphs)
    with torch.no_grad():
        compiled(*tensors)
        call, end = least_ns(lambda: compiled(*tensors)), least_ns(lambda: ends[0](*tensors))
        eager = least_ns(lambda: two_sums(*tensors))
    (graph,) = backend.torch_compile_record.graphs[graphs_before:]
    return {
        "kernel_launches": graph.kernels,
        "call_ns": call,
        "backend_ns": end,
        "dynamo_adds_ns": call - end,
        "eager_ns": eager,
    }


class Towers(nn.Module):
    """26 towers of one layer each: 52 parameters, as a recommender's many small branches have them."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(26))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 16) to (batch, 26 * 16)."""
        return torch.cat([tower(x) for tower in self.towers], 1)


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(16, 16), (1, 16)),
    "towers": (Towers, (1, 16)),
    "lstm": (lambda: nn.LSTM(16, 16), (8, 1, 16)),
}
"""A small model of each kind and the shape of its input."""


def measure_doors() -> dict[str, dict[str, float | int]]:
    """A whole inference call of each model: through optimize(), through torch.compile, and eager."""
    return {name: _measure_model(make().eval(), torch.randn(shape)) for name, (make, shape) in MODELS.items()}


def _measure_model(model: nn.Module, x: torch.Tensor) -> dict[str, float | int]:
    optimized, compiled = (
        optimize(copy.deepcopy(model)),
        torch.compile(copy.deepcopy(model), backend="wolong"),
    )
    doors = {"optimize_ns": optimized, "torch_compile_ns": compiled, "eager_ns": model}
    with torch.no_grad():
        found = _least_of_each({key: partial(door, x) for key, door in doors.items()})
    return {"parameters": sum(1 for _ in model.parameters())} | found


def measure_steps() -> dict[str, dict[str, float | int]]:
    """A whole step of training, forward and backward, of each model through the same doors."""
    return {name: _measure_step(make(), torch.randn(shape)) for name, (make, shape) in MODELS.items()}


def _measure_step(model: nn.Module, x: torch.Tensor) -> dict[str, float | int]:
    doors = {
        "optimize_ns": optimize(copy.deepcopy(model)),
        "with_dynamo_ns": optimize(copy.deepcopy(model), verify="always"),
        "torch_compile_ns": torch.compile(copy.deepcopy(model), backend="wolong"),
        "eager_ns": model,
    }
    found = _least_of_each({key: partial(_step, door, x) for key, door in doors.items()}, calls=20)
    return {"parameters": sum(1 for _ in model.parameters())} | found


def _step(model: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]], x: torch.Tensor) -> None:
    y = model(x)
    (y if isinstance(y, torch.Tensor) else y[0]).sum().backward()


def measure_function() -> dict[str, float | int]:
    """A call of a plain function of six vectors through each door."""
    tensors = inputs()
    doors = {
        "optimize_ns": optimize(two_sums),
        "torch_compile_ns": torch.compile(two_sums, backend="wolong"),
        "eager_ns": two_sums,
    }
    with torch.no_grad():
        return _least_of_each({key: partial(door, *tensors) for key, door in doors.items()})


def _least_of_each(doors: Mapping[str, Callable[[], object]], calls: int = CALLS) -> dict[str, float | int]:
    """Turn about, so that a busy moment of the machine meets all of them."""
    for door in doors.values():
        for _ in range(SETTLING_CALLS):
            door()
    rounds = [{key: least_ns(door, calls, runs=10) for key, door in doors.items()} for _ in range(5)]
    return {key: min(found[key] for found in rounds) for key in doors}


def measure() -> dict[str, object]:
    """All of it, in nanoseconds a call."""
    team = team_size()
    return {
        "benchmark": "call_overhead",
        "machine": machine(),
        "unit": "ns",
        "goal_ns": GOAL_NS,
        "one_thread": measure_call(threads=1),
        **({"cut_for_a_team": {"threads": team, **measure_call(threads=team)}} if team > 1 else {}),
        "torch_compile": measure_dynamo(),
        **{f"call_of_{name}": found for name, found in measure_doors().items()},
        "call_of_function": measure_function(),
        **{f"step_of_{name}": found for name, found in measure_steps().items()},
    }


def _screen(results: Mapping[str, object]) -> str:
    lines = []
    for name, values in results.items():
        lines.append(f"{name}: {values}" if not isinstance(values, dict) else f"{name}:")
        for key, value in values.items() if isinstance(values, dict) else ():
            shown = f"{value:10,.0f}" if isinstance(value, float | int) else f"{value:>10}"
            lines.append(f"  {key:20} {shown}")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_output_arguments(parser)
    publish(measure(), parser.parse_args(), _screen)


if __name__ == "__main__":
    main()
