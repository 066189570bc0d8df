"""FX partition to operator instances: one table of lowerings by ATen operator, one file a family.

`lower_graph` walks the nodes in order. A node's value is a `TensorValue`: a shape, a dtype and a function
from coordinates to an expression, so views and pointwise chains cost nothing until somebody needs memory.
"""

from wolong_fx.codegen.lower.graph import LoweredGraph, lower_graph, why_unsupported

__all__ = ["LoweredGraph", "lower_graph", "why_unsupported"]
