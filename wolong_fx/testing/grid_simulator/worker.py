"""The process that interprets kernels: reads requests from stdin, writes replies to stdout."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import partial
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch

from wolong_fx.testing.grid_simulator.interpreter import (
    Hooks,
    bound_arguments,
    mend_interpreter,
    original_error,
    set_block,
)
from wolong_fx.testing.grid_simulator.messages import Memory, Reply, Request, receive, send
from wolong_fx.testing.grid_simulator.scheduler import Scheduler
from wolong_fx.testing.grid_simulator.shadow import Fault, Shadow

ALIGNMENT = 64


def main() -> None:
    """Answer requests until the other side is gone."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not stand between the replies
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's of divisions by zero
    torch.set_num_threads(1)
    mend_interpreter()
    with TemporaryDirectory() as folder:
        while True:
            try:
                request = receive(requests)
            except EOFError:
                return
            send(replies, _answer(request, Path(folder)))


def _answer(request: Request, folder: Path) -> Reply:
    try:
        return _run(request, _load_module(request.text, folder))
    except BaseException as error:
        found = original_error(error)
        is_ours = isinstance(found, Fault)
        return Reply(fault=str(found) if is_ours else f"{type(found).__name__}: {found}", is_ours=is_ours)


def _load_module(text: str, folder: Path) -> Any:
    """A module of kernels; Triton reads their text from its file."""
    name = "kernel_" + sha256(text.encode()).hexdigest()[:16]
    if name not in sys.modules:
        path = folder / f"{name}.py"
        path.write_text(text)
        spec = spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _run(request: Request, module: Any) -> Reply:
    memories = [_allocated(m) for m in request.memories]
    word, failure = torch.zeros(32, dtype=torch.int32).view(torch.uint32), torch.zeros(1, dtype=torch.int32)
    shadow = _shadow_of(request, memories, word, failure)
    named: dict[str, Any] = {"word": word, "failure": failure} | {
        name: memories[p.memory].view(getattr(torch, p.dtype)) for name, p in request.pointers
    }
    counts: Counter[str] = Counter()
    for number, launch in enumerate(request.launches):
        scheduler = Scheduler(
            launch.blocks,
            request.resident,
            request.seed + number,
            partial(set_block, blocks=launch.blocks),
        )
        hooks = Hooks(shadow, scheduler, request.switching)
        values = named | {f"t{depth}": trip for depth, trip in enumerate(launch.trips)} | {"G": launch.blocks}
        kernel = getattr(module, launch.kernel)
        arguments = {name: values[name] for name in kernel.arg_names}
        with bound_arguments(kernel, arguments) as body, hooks.installed():
            scheduler.run(body)
        counts += hooks.counts + Counter(switches=scheduler.switches, launches=1)
        shadow.end_launch()
    sizes = [len(m.bytes) for m in request.memories]
    return Reply(_contents(memories, sizes), int(failure.item()), counts=dict(counts))


def _shadow_of(
    request: Request, memories: list[torch.Tensor], word: torch.Tensor, failure: torch.Tensor
) -> Shadow:
    granule = min((getattr(torch, p.dtype).itemsize for _, p in request.pointers), default=1)
    shadow = Shadow(max((launch.blocks for launch in request.launches), default=1), granule)
    for memory, tensor in zip(request.memories, memories, strict=True):
        shadow.add(memory.name, tensor.data_ptr(), len(memory.bytes), memory.is_given)
    shadow.add("barrier word", word.data_ptr(), 4, True)
    shadow.add("failure word", failure.data_ptr(), 4, True)
    return shadow


def _allocated(memory: Memory) -> torch.Tensor:
    """The memory's bytes, aligned, with room for a whole last element."""
    size = -(-len(memory.bytes) // ALIGNMENT) * ALIGNMENT
    room = torch.zeros(size + ALIGNMENT, dtype=torch.uint8)
    start = -room.data_ptr() % ALIGNMENT
    tensor = room[start : start + size]
    tensor[: len(memory.bytes)] = (
        torch.frombuffer(bytearray(memory.bytes), dtype=torch.uint8) if memory.bytes else 0
    )
    return tensor


def _contents(memories: Iterable[torch.Tensor], sizes: Iterable[int]) -> tuple[bytes, ...]:
    return tuple(bytes(m[:n].numpy().tobytes()) for m, n in zip(memories, sizes, strict=True))


if __name__ == "__main__":
    main()
