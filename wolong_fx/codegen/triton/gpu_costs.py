"""What work costs on the GPUs that tiles are chosen for: one declared table, nothing in it measured by us.

Sources: clocks, multiply-adds and memory rates from NVIDIA's white papers and data sheets (A100 SXM 80 GB,
H100 SXM, B200; dense, boost clock). A multiprocessor's port to L2 is 64 bytes wide in A100's; the L2 rate is
two thirds of the 5,120 bytes a clock that it states, which is what public microbenchmarks reach, and the same
is assumed of the later ones; the latency of
an L2 hit is that of the same microbenchmarks (200 to 270 clocks; misses of the near partition included); the
barrier is that of Zhang et al. 2020, "A Study of Single and Multi-device Synchronization Methods in Nvidia
GPUs", one block a multiprocessor. `make bench-gpu` measures barriers and kernels; until it has run on a GPU
these figures only rank candidates against each other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuCosts:
    """Of one device.

    clock: of a multiprocessor, Hz
    fma, tensor_tf32, tensor_16: multiply-adds of a multiprocessor a clock: float32, and on tensor cores of
        tf32, bfloat16 or float16
    l2_port: bytes that a multiprocessor takes from L2 a clock
    l2, memory: bytes a second of the whole device
    latency: seconds of a load that finds its element in L2
    barrier: seconds of a barrier of the grid, one block a multiprocessor
    launch: seconds from one kernel of a stream to the next
    """

    multiprocessors: int
    clock: float
    fma: int
    tensor_tf32: int
    tensor_16: int
    l2_port: int
    l2: float
    memory: float
    latency: float
    barrier: float
    launch: float


GPU_COSTS: dict[str, GpuCosts] = {
    "sm_80": GpuCosts(108, 1.41e9, 64, 512, 1024, 64, 4.8e12, 2.0e12, 0.20e-6, 1.5e-6, 3e-6),
    "sm_90": GpuCosts(132, 1.755e9, 128, 1024, 2048, 64, 6.0e12, 3.35e12, 0.16e-6, 1.2e-6, 2.5e-6),
    "sm_100": GpuCosts(148, 1.85e9, 128, 2048, 4096, 64, 6.3e12, 8.0e12, 0.16e-6, 1.2e-6, 2.5e-6),
}

USUAL = GPU_COSTS["sm_90"]
"""What kernels are cut for when no device is named."""
