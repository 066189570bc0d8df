"""Building, caching, loading and launching kernels; arenas and the executor of partitioned graphs."""

from wolong_fx.runtime.executor import CallStep, Executor, KernelStep, Shortcut, Slot, slots_in
from wolong_fx.runtime.image import ABI_VERSION, ARENA_HEADER_BYTES, KernelImage, TensorSpec
from wolong_fx.runtime.kernel import Kernel, load_kernel
from wolong_fx.runtime.machine_costs import MachineCosts, machine_costs
from wolong_fx.runtime.resident import ResidentKernel, Wiring
from wolong_fx.runtime.threads import team_size
from wolong_fx.runtime.watch import Watch, is_watchable

__all__ = [
    "ABI_VERSION",
    "ARENA_HEADER_BYTES",
    "CallStep",
    "Executor",
    "Kernel",
    "KernelImage",
    "KernelStep",
    "MachineCosts",
    "ResidentKernel",
    "Shortcut",
    "Slot",
    "TensorSpec",
    "Watch",
    "Wiring",
    "is_watchable",
    "load_kernel",
    "machine_costs",
    "slots_in",
    "team_size",
]
