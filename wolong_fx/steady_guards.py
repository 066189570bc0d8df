"""Which of Dynamo's guards only look names up: while the namespaces are unchanged, they find what they found.

Half of the time of a reduced set of guards goes into such: that `torch.tanh`, `len` or a helper in the file
of the model still stand where the traced code would find them. A namespace is a dictionary or a Python
module, whose every change moves a version tag; so one comparison of tags stands for all look-ups that once
succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

Guard = Callable[[dict[str, Any]], bool]

_IDENTITIES = frozenset({"ID_MATCH", "NONE_MATCH", "TRUE_MATCH", "FALSE_MATCH"})
_HEAP_TYPE = 1 << 9  # of type.__flags__; an object of any other type keeps it


class SteadyGuards(NamedTuple):
    """`rest`: the guards without those that hold again as long as `namespaces` are unchanged."""

    rest: Guard
    namespaces: tuple[dict[str, Any] | ModuleType, ...]


def find_steady_guards(guards: Any, names: Mapping[str, Any]) -> SteadyGuards:
    """Without namespaces where nothing can be left out.

    guards: the root of a tree of Dynamo's guards, that just held
    names: what they see: L, the local variables, and G, the global ones
    """
    walk = _Walk(names)
    walk.visit(guards, is_named=False)
    can_split = bool(walk.namespaces)
    rest = guards.clone_manager(lambda node: node.get_source() in walk.kept) if can_split else None
    if rest is None or not rest.check(names["L"]):
        return SteadyGuards(guards.check, ())
    return SteadyGuards(rest.check, tuple(walk.namespaces.values()))


class _Walk:
    """Goes through a tree of guards; `kept` are the sources of those that must be checked every time."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names
        self.kept: set[str] = set()
        self.namespaces: dict[int, dict[str, Any] | ModuleType] = {}

    def visit(self, node: Any, *, is_named: bool) -> bool:
        """Whether the node must be kept, for itself or for one below it.

        is_named: names alone lead to its object, all the way from the global ones
        """
        needed = [self.visit(below, is_named=found) for below, found in self._below(node, is_named)]
        if is_named and not any(needed) and self._stays(node):
            return False
        self.kept.add(node.get_source())
        return True

    def _below(self, node: Any, is_named: bool) -> Iterator[tuple[Any, bool]]:
        for pair in getattr(node, "get_key_value_managers", dict)().values():
            yield from ((below, False) for below in filter(None, pair))
        for accessor, below in zip(node.get_accessors(), node.get_child_managers(), strict=True):
            kind = type(accessor).__name__
            is_global = kind == "GlobalsGuardAccessor" and below.get_source() == "G"
            yield below, is_global or (is_named and self._looks_up(kind, node))

    def _looks_up(self, kind: str, node: Any) -> bool:
        """Whether an accessor finds a name in the namespace that the node guards."""
        namespace = self._object_of(node)
        expected = {"DictGetItemGuardAccessor": dict, "GetAttrGuardAccessor": ModuleType}.get(kind)
        if type(namespace) is not expected:
            return False
        self.namespaces[id(namespace)] = namespace
        return True

    def _stays(self, node: Any) -> bool:
        """Whether what the node asks of one and the same object is always answered alike."""
        kinds = {type(guard).__name__ for guard in node.get_leaf_guards()} - _IDENTITIES
        has_keys = bool(getattr(node, "get_key_value_managers", dict)())
        has_fixed_type = not type(self._object_of(node)).__flags__ & _HEAP_TYPE
        return not has_keys and (not kinds or (kinds == {"TYPE_MATCH"} and has_fixed_type))

    def _object_of(self, node: Any) -> Any:
        """What the node guards; where its source is no Python expression, an object that is no namespace."""
        try:
            return eval(node.get_source(), {}, dict(self._names))
        except Exception:
            return _UNKNOWN


class _Unknown:
    """The type of the object that stands for any other; a heap type."""


_UNKNOWN = _Unknown()
