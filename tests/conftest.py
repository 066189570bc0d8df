"""What a test may need, and the only place that decides to skip: one capability question a row.

A test says what it needs with a marker of that name (`pytest.mark.cpu`); without one it needs only Python and
torch. `--must-have cpu` turns the skips of a capability into an error, so that a machine which should have it
cannot quietly run half of the tests.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import pytest

# A developer's own settings must not change what is tested.
for _name in [name for name in os.environ if name == "WOLONG" or name.startswith("WOLONG_")]:
    del os.environ[_name]


class Capability(NamedTuple):
    is_here: Callable[[], bool]
    reason: str


def _has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _can_mount() -> bool:
    command = "mount -t tmpfs none /mnt"
    return shutil.which("unshare") is not None and (
        subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True).returncode == 0
    )


def _can_differentiate_scan() -> bool:
    from wolong_fx._torch_compat import can_differentiate_scan

    return can_differentiate_scan()


def _is_new_torch() -> bool:
    import torch

    return torch.__version__ >= "2.13"


CAPABILITIES: dict[str, Capability] = {
    "none": Capability(lambda: True, ""),
    "cpu": Capability(_has_compiler, "needs a C++ compiler: g++ on PATH, or CXX"),
    "avx2": Capability(lambda: {"avx2", "fma"} <= _cpu_flags(), "needs a processor with AVX2 and FMA"),
    "avx512": Capability(lambda: "avx512f" in _cpu_flags(), "needs a processor with AVX-512"),
    "two_cores": Capability(lambda: len(os.sched_getaffinity(0)) > 1, "needs two processors"),
    "unprivileged": Capability(lambda: os.geteuid() != 0, "needs a user whom file modes bind (not root)"),
    "private_mounts": Capability(_can_mount, "needs the right to mount a disk of its own (root)"),
    "tensorboard": Capability(lambda: find_spec("tensorboard") is not None, "needs tensorboard"),
    "bench_peers": Capability(
        lambda: all(map(find_spec, ("onnx", "onnxruntime", "openvino"))), "needs pip install '.[bench]'"
    ),
    "gpu": Capability(_has_gpu, "needs a CUDA device"),
    "fabric": Capability(lambda: Path("/sys/class/infiniband").is_dir(), "needs an RDMA device"),
    "scan_gradients": Capability(
        _can_differentiate_scan, "needs a torch whose gradients of a scan are right: 2.13"
    ),
    "kept_assertions": Capability(
        _is_new_torch, "needs a torch that keeps operators that only assert when it traces: 2.13"
    ),
    "guarded_defaults": Capability(
        _is_new_torch, "needs a torch whose Dynamo sees new defaults of a function that it inlined: 2.13"
    ),
    "clamp_by_nan": Capability(
        _is_new_torch, "needs a torch whose clamp by one NaN gives NaN, as its documentation says: 2.13"
    ),
    "engine": Capability(lambda: shutil.which("sbatch") is not None, "needs a running Slurm or Ray"),
}


@pytest.fixture(autouse=True)
def _numbers_of_its_own(request: pytest.FixtureRequest) -> None:
    """Every test draws the same random numbers every time, whatever ran before it."""
    import torch

    seed = crc32(request.node.nodeid.encode())
    random.seed(seed)
    torch.manual_seed(seed)


@cache
def is_here(capability: str) -> bool:
    return CAPABILITIES[capability].is_here()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write golden files, compare with none")
    parser.addoption("--tighten", action="store_true", help="write budgets that need less, or are new")
    parser.addoption("--must-have", action="append", default=[], choices=CAPABILITIES, help="fail without it")


def pytest_configure(config: pytest.Config) -> None:
    for name, capability in CAPABILITIES.items():
        config.addinivalue_line("markers", f"{name}: {capability.reason or 'needs only Python and torch'}")
    missing = [name for name in config.getoption("--must-have") if not is_here(name)]
    if missing:
        raise pytest.UsageError("; ".join(CAPABILITIES[name].reason for name in missing))
    # Kernels are addressed by their source and flags, so one cache may serve every run and worker.
    os.environ["WOLONG_CACHE_DIR"] = str(config.cache.mkdir("wolong_kernels"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers():
            if marker.name in CAPABILITIES and not is_here(marker.name):
                item.add_marker(pytest.mark.skip(reason=CAPABILITIES[marker.name].reason))
