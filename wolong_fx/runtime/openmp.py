"""The OpenMP runtime that torch itself uses: kernels start their teams on its threads.

A pool of our own would share the processors with torch's idle workers, which spin for a while after
every parallel operator: measured 2.4 times slower right after one. So a kernel is not linked with OpenMP;
it is handed the entry points that libtorch_cpu resolves to, whatever file they are in (wheels bundle
libgomp under its own or a hashed name; conda has libomp or libiomp5 in its place).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch  # noqa: F401  its library has to be loaded before it can be found

from wolong_fx.toolchain.notices import warn_once

_RUNTIME = re.compile(r"/lib(gomp|iomp5|omp)[-.][^/]*$")
_TORCH = re.compile(r"/libtorch_cpu\.so[^/]*$")
_ENTRY_POINTS = (
    "GOMP_parallel",
    "omp_get_thread_num",
    "omp_in_parallel",
    "omp_get_dynamic",
    "omp_get_thread_limit",
    "omp_get_max_active_levels",
)


@dataclass(frozen=True)
class OpenMP:
    """Entry points of a loaded OpenMP runtime."""

    library: ctypes.CDLL

    def address(self, name: str) -> int:
        return ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value or 0

    @property
    def is_in_parallel(self) -> Callable[[], int]:
        """C function: nonzero when the calling thread is in a parallel region, which grants no other team."""
        return self.library.omp_in_parallel

    def grants_team(self, threads: int) -> bool:
        """Whether a parallel region gets all the threads it asks for: a barrier would wait for those missing.

        The settings asked for (OMP_DYNAMIC, OMP_THREAD_LIMIT, OMP_MAX_ACTIVE_LEVELS) are the ones by which
        a runtime may grant fewer.
        """
        return (
            not self.library.omp_get_dynamic()
            and self.library.omp_get_thread_limit() >= threads
            and self.library.omp_get_max_active_levels() >= 1
        )


@cache
def find_openmp() -> OpenMP | None:
    """The OpenMP runtime behind torch's own parallel operators; None when torch was built without one."""
    loaded = loaded_libraries()
    runtimes = [path for path in loaded if _RUNTIME.search(path)]
    if len(runtimes) > 1:
        warn_once("openmp", _rivals(runtimes))
    torch_library = next((path for path in loaded if _TORCH.search(path)), None)
    if torch_library is None:
        return None
    # dlsym on a handle looks through the library's dependencies in order: it finds what torch calls.
    library = ctypes.CDLL(torch_library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    return OpenMP(library) if all(hasattr(library, name) for name in _ENTRY_POINTS) else None


def loaded_libraries(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Paths of the shared objects in this process, each file once; none where the system does not say."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return []
    files: dict[tuple[str, str], str] = {}
    for line in lines:
        fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, path
        if len(fields) == 6 and ".so" in fields[5]:
            files.setdefault((fields[3], fields[4]), fields[5])
    return list(files.values())


def _rivals(runtimes: list[str]) -> str:
    return (
        f"{len(runtimes)} OpenMP runtimes are loaded ({', '.join(runtimes)}): their idle workers slow each "
        "other and our kernels. Keep what brings the other in a process of its own, or set "
        "OMP_WAIT_POLICY=passive."
    )
