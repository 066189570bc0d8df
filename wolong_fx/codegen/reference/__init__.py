"""The reference machine: runs a program slowly, in random block order, on torch tensors; the oracle of the
other targets.
"""

from wolong_fx.codegen.reference.kernel import ReferenceKernel
from wolong_fx.codegen.reference.machine import run_program

__all__ = ["ReferenceKernel", "run_program"]
