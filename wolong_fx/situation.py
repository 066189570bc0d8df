"""What a call of a model was like: arguments, the model, what ran. A later one like it is served alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wolong_fx.capture.watch import GraphCall
from wolong_fx.places import Place
from wolong_fx.runtime.direct_call import CONSTANT, DICT, LIST, TENSOR, TUPLE

MOST_TENSORS = 64
"""Tensors among the arguments: each is compared with all others."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_CONSTANTS = (bool, int, float, str, type(None), torch.dtype)
_CONTAINERS = {tuple: TUPLE, list: LIST, dict: DICT}
_TENSORS = (Tensor, nn.Parameter)
_DICTS = ("_parameters", "_buffers", "_modules", *HOOKS)

Description = tuple[Any, ...]
"""A node of a structure, as direct_call.cpp takes it."""


class NotThin(Exception):
    """Why a call cannot be remembered."""


class Model:
    """The modules that a call runs in and the dictionaries that hold all they consist of. Raises NotThin.

    places: where the function that is called finds modules and tensors
    """

    def __init__(self, roots: Sequence[nn.Module], places: Sequence[Place] = ()) -> None:
        self.places = tuple(places)
        self.modules = tuple(dict.fromkeys(module for root in roots for module in root.modules()))
        dicts = [vars(module) for module in self.modules]
        for module in self.modules:
            dicts += map(_dicts_of(module).__getitem__, _DICTS)
        self.dicts = tuple(dicts)
        values = [*(v for d in dicts for v in d.values()), *(place.value for place in self.places)]
        self.tensors = {id(value): value for value in values if type(value) in _TENSORS}

    def settled(self) -> set[int]:
        """ids of what is the same as long as no dictionary and no place changes."""
        return {id(x) for x in (*self.modules, *self.dicts)} | set(self.tensors)


@dataclass(frozen=True)
class Result:
    """What a call returned, as a structure of its graph's outputs.

    containers: lists and dicts in it
    """

    description: Description
    containers: tuple[Any, ...]


@dataclass(frozen=True)
class Situation:
    """What a watched call was like. Two calls alike in `likeness` show that nothing in it was by chance.

    given: the tensors among the arguments, in the order of their places in `arguments`
    version: the latest of the model's dictionaries
    graph, result: None where no kernel ran, so that the model itself may as well be called
    """

    arguments: Description
    given: tuple[Tensor, ...]
    model: Model
    version: int
    graph: GraphCall | None = None
    result: Result | None = None

    @classmethod
    def of(
        cls,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        result: Any,
        graphs: Sequence[GraphCall],
        model: Model,
        version: int,
    ) -> Situation:
        """Of a call with these arguments, that ran `graphs`. Raises NotThin."""
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise NotThin("autocast is on")
        given: list[Tensor] = []
        arguments = _described(call, lambda tensor: _place_of_argument(tensor, given))
        if not any(graph.launches for graph in graphs):
            return cls(arguments, tuple(given), model, version)
        if len(graphs) != 1:
            raise NotThin(f"a call runs {len(graphs)} compiled graphs")
        (graph,) = graphs
        if graph.written is None:
            raise NotThin("it changes inputs in ways that need care afterwards, or returns views of tensors")
        if graph.training is not None and not torch.is_grad_enabled():
            raise NotThin("gradients flow in a part of it only")
        _check_inputs(graph, given, model)
        return cls(arguments, tuple(given), model, version, graph, _result_of(graph, result))

    @property
    def likeness(self) -> object:
        """Compares equal for calls that are served alike; holds no tensor."""
        arguments = _text(self.arguments), self.version
        if self.graph is None or self.result is None:
            return arguments
        places = {id(tensor): i for i, tensor in enumerate(self.given)}
        inputs = [places.get(id(tensor), id(tensor)) for tensor in self.graph.inputs]
        return *arguments, self.graph.run, _text(self.result.description), inputs

    @property
    def containers(self) -> tuple[Any, ...]:
        """Lists and dicts that the call returned."""
        return self.result.containers if self.result else ()


def hooks_in(roots: Sequence[nn.Module]) -> tuple[dict[Any, Any], ...]:
    """The dictionaries of hooks of modules and those in them."""
    found = [vars(part).get(name) for root in roots for part in root.modules() for name in HOOKS]
    return tuple(hooks for hooks in found if isinstance(hooks, dict))


def _result_of(graph: GraphCall, result: Any) -> Result:
    containers: list[Any] = []
    places = {id(tensor): i for i, tensor in enumerate(graph.outputs) if i not in graph.returned}
    description = _described(result, lambda tensor: _place_of_result(tensor, places), containers)
    return Result(description, tuple(containers))


def _described(
    value: Any, place: Callable[[Tensor], int], containers: list[Any] | None = None
) -> Description:
    """The structure of arguments or of a result; its lists and dicts are added to `containers`."""
    kind = type(value)
    if kind in _TENSORS:
        return TENSOR, place(value)
    if kind in _CONSTANTS:
        return CONSTANT, value
    if kind not in _CONTAINERS:
        raise NotThin(f"a {kind.__name__!r} is among its arguments or results")
    if containers is not None and kind is not tuple:
        containers.append(value)
    parts = value.values() if kind is dict else value
    described = tuple(_described(part, place, containers) for part in parts)
    if kind is not dict:
        return _CONTAINERS[kind], described
    if not all(type(key) in _CONSTANTS for key in value):
        raise NotThin("a dict with other keys than strings and numbers is among its arguments or results")
    return DICT, described, tuple(value)


def _place_of_argument(tensor: Tensor, given: list[Tensor]) -> int:
    if any(tensor is other for other in given):
        raise NotThin("one tensor is given twice")
    if len(given) == MOST_TENSORS:
        raise NotThin(f"it is given more than {MOST_TENSORS} tensors")
    given.append(tensor)
    return len(given) - 1


def _place_of_result(tensor: Tensor, places: dict[int, int]) -> int:
    if id(tensor) not in places:
        raise NotThin("it returns a tensor that its graph does not")
    return places[id(tensor)]


def _check_inputs(graph: GraphCall, given: Sequence[Tensor], model: Model) -> None:
    """Raise NotThin for an input that is neither an argument nor the model's, and for shared memory."""
    known = {id(tensor) for tensor in given} | set(model.tensors)
    if any(id(value) not in known for value in graph.inputs):
        raise NotThin("its graph reads a tensor that is neither argument, parameter, buffer nor attribute")
    if any(id(tensor) in model.tensors for tensor in given):
        raise NotThin("it is given a tensor of its own")
    memory = {t.untyped_storage().data_ptr() for t in graph.inputs} - {0}
    made = (t for i, t in enumerate(graph.outputs) if isinstance(t, Tensor) and i not in graph.returned)
    if any(t.untyped_storage().data_ptr() in memory for t in made):
        raise NotThin("a result shares memory with an input")
    storages = [t.untyped_storage()._cdata for t in graph.inputs]
    if any(storages.count(storages[position]) > 1 for position in graph.written or ()):
        raise NotThin("what it writes shares memory with another input")


def _dicts_of(module: nn.Module) -> dict[str, Any]:
    """The dictionaries that hold the module's parts, by name."""
    found = {name: vars(module).get(name) for name in _DICTS}
    if any(type(value) not in (dict, OrderedDict) for value in found.values()):
        raise NotThin(f"a {type(module).__name__!r} does not keep its parts as nn.Module does")
    if any(found[name] for name in HOOKS):
        raise NotThin(f"a {type(module).__name__!r} has hooks")
    return found


def _text(description: Description) -> str:
    """Tells True from 1 and 0.0 from -0.0, which are equal."""
    return repr(description)
