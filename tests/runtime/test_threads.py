from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from wolong_fx.runtime import openmp, team_size, threads
from wolong_fx.runtime.openmp import OpenMP, find_openmp, loaded_libraries
from wolong_fx.runtime.threads import available_processors


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of eight processors whose /proc and /sys hold the given files."""
    monkeypatch.setattr(threads, "_affinity", lambda: 8)

    def write(**files: str):
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return write


V2 = {"proc/self/cgroup": "0::/user/job\n"}
V1 = {"proc/self/cgroup": "5:memory:/job\n1:cpu,cpuacct:/user/job\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({}, 8),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "max 100000\n"}, 8),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "300000 100000\n"}, 3),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "250000 100000\n"}, 2),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "50000 100000\n"}, 1),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "1600000 100000\n"}, 8),
        (
            V2
            | {
                "sys/fs/cgroup/user/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
            },
            2,
        ),
        (V2 | {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/user/job/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/user/job/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/user/job/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/user/job/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000\n",
            },
            3,
        ),
    ],
    ids=[
        "no control groups",
        "v2 without a quota",
        "v2 whole",
        "v2 fraction is rounded down",
        "v2 less than one is one",
        "v2 more than there are",
        "v2 quota of the group around",
        "v2 seen from inside a container",
        "v1 without a quota",
        "v1 whole",
        "v1 seen from inside a container",
    ],
)
def test_a_quota_bounds_the_processors(system, files, processors):
    assert available_processors(system(**files)) == processors


def test_affinity_bounds_the_processors():
    assert available_processors() <= len(os.sched_getaffinity(0))


@pytest.fixture
def sixteen_processors(monkeypatch):
    monkeypatch.setattr(threads, "available_processors", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)


def test_a_team_is_as_large_as_asked_for_within_what_may_be_used(sixteen_processors):
    assert team_size(4) == 4


def test_a_team_never_exceeds_what_the_user_allows_torch(sixteen_processors):
    assert (team_size(0), team_size(12)) == (6, 6)


# ---- the OpenMP runtime


def fake_openmp(dynamic: int = 0, limit: int = 2**31 - 1, levels: int = 1) -> OpenMP:
    library = SimpleNamespace(
        omp_get_dynamic=lambda: dynamic,
        omp_get_thread_limit=lambda: limit,
        omp_get_max_active_levels=lambda: levels,
    )
    return OpenMP(library)  # type: ignore[arg-type]


def test_a_team_is_granted_only_whole():
    assert fake_openmp().grants_team(4)
    assert fake_openmp(limit=4).grants_team(4)
    assert not fake_openmp(limit=3).grants_team(4)
    assert not fake_openmp(dynamic=1).grants_team(4)
    assert not fake_openmp(levels=0).grants_team(4)


def test_the_runtime_found_is_the_one_torch_computes_with():
    found = find_openmp()
    assert found is not None
    assert found.library.omp_get_max_threads() == torch.get_num_threads()
    entry = found.address("GOMP_parallel")
    with open("/proc/self/maps") as maps:
        spans = [(line.split("-")[0], line.split()[0].split("-")[1], line) for line in maps]
    (line,) = [line for low, high, line in spans if int(low, 16) <= entry < int(high, 16)]
    assert "omp" in line


def test_libraries_are_listed_once_by_file_not_by_name(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 fe:00 11 /a/libgomp.so.1\n"
        "7f01-7f02 r--p 00001000 fe:00 11 /a/libgomp.so.1\n"
        "7f03-7f04 r-xp 00000000 fe:00 12 /with space/libgomp-a34b3233.so.1.0.0\n"
        "7f05-7f06 rw-p 00000000 00:00 0 [heap]\n"
        "7f07-7f08 rw-p 00000000 00:00 0\n"
    )
    assert loaded_libraries(maps) == ["/a/libgomp.so.1", "/with space/libgomp-a34b3233.so.1.0.0"]
    assert loaded_libraries(tmp_path / "missing") == []


@pytest.mark.parametrize("rival", ["/x/libiomp5.so", "/x/libgomp-a34b3233.so.1.0.0", "/x/libomp.so"])
def test_two_openmp_runtimes_are_said_once(rival, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="wolong_fx")
    real = loaded_libraries()
    monkeypatch.setattr(openmp, "loaded_libraries", lambda: [*real, rival])
    for _ in range(2):
        assert find_openmp.__wrapped__() is not None
    (record,) = caplog.records
    assert "2 OpenMP runtimes are loaded" in record.getMessage()
    assert rival in record.getMessage()


def test_a_torch_without_openmp_is_no_error(monkeypatch):
    monkeypatch.setattr(openmp, "loaded_libraries", list)
    assert find_openmp.__wrapped__() is None


@pytest.mark.cpu
@pytest.mark.two_cores
def test_a_thread_limit_in_the_environment_means_one_thread_not_a_barrier_for_ever(options):
    program = (
        "from wolong_fx.options import Options\n"
        "from wolong_fx.runtime import load_kernel\n"
        "from wolong_fx.testing.handwritten import add_then_reverse\n"
        "import torch\n"
        "kernel = load_kernel(add_then_reverse(64), Options.of())\n"
        "a = torch.arange(64.)\n"
        "assert all(torch.equal(kernel(a, a)[0], (a + a).flip(0)) for _ in range(20))\n"
    )
    environment = os.environ | {"WOLONG_CACHE_DIR": options.cache_dir, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
