"""What contenders run on: a GPU, or the CPU in its place, to try a benchmark before the GPU is there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import triton

from wolong_fx.errors import NoGpuHere

Call = Callable[[], object]


class Device(Protocol):
    """Runs calls, says when they are done, and what was launched for them."""

    @property
    def name(self) -> str:
        """As torch has it."""
        ...

    def describe(self) -> dict[str, object]:
        """What a figure must be read with, beside the machine."""
        ...

    def finish(self) -> None:
        """Wait until everything that was asked for is done; raises what went wrong meanwhile."""
        ...

    def capture(self, call: Call) -> Call:
        """What `call` does now, recorded; it writes its results where it wrote them first."""
        ...

    def profile(self, call: Call) -> Launches:
        """What one call launches."""
        ...


@dataclass(frozen=True)
class Launches:
    """What one call asks the device for.

    launches: by the processor, a whole graph counting one; kernels: run by the device; copies: made by it
    busy_us: microseconds in kernels and copies
    """

    launches: int
    kernels: int
    copies: int
    busy_us: float


@dataclass(frozen=True)
class CudaDevice:
    """The current CUDA device."""

    name: str = "cuda"

    def describe(self) -> dict[str, object]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "driver": _driver_version(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton.__version__,
            "tf32": {
                "matmul": torch.backends.cuda.matmul.allow_tf32,
                "cudnn": torch.backends.cudnn.allow_tf32,
            },
        }

    def finish(self) -> None:
        torch.cuda.synchronize()

    def capture(self, call: Call) -> Call:
        aside = torch.cuda.Stream()  # allocations and libraries are warmed up where a capture will find them
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def profile(self, call: Call) -> Launches:
        activity = torch.profiler.ProfilerActivity
        events = _events(call, [activity.CPU, activity.CUDA], self)
        on_device = [event for event in events if event.device_type.name == "CUDA"]
        copies = [event for event in on_device if event.name.startswith(("Memcpy", "Memset"))]
        return Launches(
            launches=sum(event.name.startswith("cu") and "Launch" in event.name for event in events),
            kernels=len(on_device) - len(copies),
            copies=len(copies),
            busy_us=_microseconds(on_device),
        )


@dataclass(frozen=True)
class CpuDevice:
    """The CPU in a GPU's place: every step of a benchmark, no figure of it. Operators count as kernels."""

    name: str = "cpu"

    def describe(self) -> dict[str, object]:
        return {"device": "none: a dry run on the CPU", "multiprocessors": 4, "triton": triton.__version__}

    def finish(self) -> None:
        pass

    def capture(self, call: Call) -> Call:
        call()
        return call

    def profile(self, call: Call) -> Launches:
        events = _events(call, [torch.profiler.ProfilerActivity.CPU], self)
        operators = [e for e in events if e.cpu_parent is None and e.name.startswith("aten::")]
        return Launches(len(operators), len(operators), copies=0, busy_us=_microseconds(operators))


def _events(call: Call, activities: Sequence[Any], device: Device) -> Sequence[Any]:
    """Of one call, the profiler itself warmed up."""
    device.finish()
    with torch.profiler.profile(activities=activities):
        call()
        device.finish()
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        device.finish()
    return profiler.events() or ()


def _microseconds(events: Sequence[Any]) -> float:
    return sum(event.time_range.elapsed_us() for event in events)


def find_device(*, dry: bool) -> Device:
    """A GPU; in a dry run the CPU.

    Raises NoGpuHere.
    """
    if dry:
        return CpuDevice()
    if not torch.cuda.is_available():
        because = (
            "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no device"
        )
        raise NoGpuHere(because=because)
    return CudaDevice()


def _driver_version() -> str | None:
    if not (program := shutil.which("nvidia-smi")):
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True)
    return said.stdout.strip() or None
