"""Emitted Triton kernels, unchanged, on a grid of simulated blocks: without a GPU, with every fault that a
barrier can have turned into an error.

A kernel runs in a process of its own, since Triton decides at import whether it interprets. There every
block is a thread, one of which runs at a time; whose turn it is next is drawn at every atomic and at some
of the loads and stores. Shadow memory holds who wrote and read what when, in vector clocks (FastTrack,
Flanagan and Freund 2009).
"""

from wolong_fx.testing.grid_simulator.client import SimulatedRun, simulate
from wolong_fx.testing.grid_simulator.target import SimulatedKernel, SimulatedTarget

__all__ = ["SimulatedKernel", "SimulatedRun", "SimulatedTarget", "simulate"]
