"""A GPU made of memory on the CPU: the runtime above it is the real one, down to addresses and parameters.

It runs kernels on the grid simulator, keeps streams and graphs as queues that nobody hurries, lends out
memory again as torch's allocator does, and refuses what CUDA refuses. What the runtime gets wrong with order,
lifetime or capture shows as a wrong number or a Violation.
"""

from wolong_fx.testing.fake_device.device import FakeDevice, FakeTarget, LaunchRecord
from wolong_fx.testing.fake_device.queues import Violation

__all__ = ["FakeDevice", "FakeTarget", "LaunchRecord", "Violation"]
