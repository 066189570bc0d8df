"""Calls of an optimised module without Dynamo, which costs ten to thirty microseconds a call.

A call through Dynamo is watched. If all it did was to fetch tensors, run one compiled graph and hand out what
that returned, and the next one does the same, the situation is remembered: modes, arguments, model, and the
guards of Dynamo that none of these implies. Where they still hold, later calls run that graph at once; any
other call goes through Dynamo, which sees every change as it always does, and may be remembered in its turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from wolong_fx import _torch_compat
from wolong_fx.capture.watch import GraphCall, Watch
from wolong_fx.ledger import Ledger
from wolong_fx.runtime import Executor, Shortcut
from wolong_fx.runtime.direct_call import CONSTANT, DICT, LIST, TENSOR, TUPLE, DirectCall
from wolong_fx.runtime.kernel import WriteAddresses

STEP = "thin-path"  # of the ledger
ENTRIES = 8  # situations kept of a model: as many as Dynamo's graphs of a function, by default
MOST_TENSORS = 64
"""Tensors among the arguments: each is compared with all others."""

LONGEST_REST = 10
"""After failing n times in a row to remember a call, the next 2**n are not watched; n is at most this."""

REST_IN_TRAINING = 16

MOST_HOOK_CHANGES = 8
"""Each compiles the model anew, as many times as Dynamo compiles a function by default."""

_CONSTANTS = (bool, int, float, str, type(None), torch.dtype)
_CONTAINERS = {tuple: TUPLE, list: LIST, dict: DICT}
_TENSORS = (Tensor, nn.Parameter)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DICTS = ("_parameters", "_buffers", "_modules", *_HOOKS)

Description = tuple[Any, ...]
"""A node of a structure, as direct_call.cpp takes it."""


class NotThin(Exception):
    """Why a call cannot be remembered."""


@dataclass(frozen=True)
class Situation:
    """What a watched call was like. Two calls alike in `likeness` show that nothing in it was by chance.

    containers: lists and dicts of the result
    """

    graph: GraphCall
    arguments: Description
    result: Description
    given: tuple[Tensor, ...]
    model: Model
    version: int
    containers: tuple[Any, ...]

    @property
    def likeness(self) -> object:
        """Compares equal for calls that are served alike; holds no tensor."""
        places = {id(tensor): i for i, tensor in enumerate(self.given)}
        inputs = [places.get(id(tensor), id(tensor)) for tensor in self.graph.inputs]
        return self.graph.run, _text(self.arguments), _text(self.result), inputs, self.version


class Model:
    """The modules of a model and the dictionaries that hold all they consist of. Raises NotThin."""

    def __init__(self, root: nn.Module) -> None:
        self.modules = tuple(root.modules())
        dicts = [vars(module) for module in self.modules]
        for module in self.modules:
            dicts += map(_dicts_of(module).__getitem__, _DICTS)
        self.dicts = tuple(dicts)
        self.tensors = {id(v): v for d in dicts for v in d.values() if type(v) in _TENSORS}

    def settled(self) -> set[int]:
        """ids of what is the same as long as no dictionary changes."""
        return {id(x) for x in (*self.modules, *self.dicts)} | set(self.tensors)


class ThinPath:
    """The call of one module: `call` stands where nn.Module.__call__ looks for the compiled one.

    function: what Dynamo compiles, a call of its own of the bound method `inner`
    watch: over the graphs that the module's calls run
    """

    def __init__(self, module: nn.Module, inner: Callable[..., Any], function: FunctionType) -> None:
        self.watch = Watch()
        self._module, self._inner, self._function = module, inner, function
        self._last: tuple[object, tuple[Any, ...]] | None = None  # likeness, and containers kept alive
        self._failures = self._rest = self._hook_changes = 0
        self._said: set[str] = set()

    def open(self, compiled: Callable[..., Any], direct: DirectCall, ledger: Ledger) -> Callable[..., Any]:
        """What to call from now on; `compiled` itself where the extension is missing, which the ledger hears.

        compiled: `function` through Dynamo
        """
        self._compiled, self._ledger = compiled, ledger
        write = direct.write_addresses
        if direct.call is None or direct.entry is None or direct.newest is None or write is None:
            self._note("kept", direct.because)
            return compiled
        self._make_entry, self._newest, self._write_addresses = direct.entry, direct.newest, write
        self._hooks = _hooks_in(self._module)
        self._newest_hook = self._newest(self._hooks)
        self.call = direct.call(self._slow)
        return self.call

    def _slow(self, *args: Any, **kwargs: Any) -> Any:
        if self._newest(self._hooks) != self._newest_hook:
            self._see_hooks()
        if self._hook_changes > MOST_HOOK_CHANGES:
            return self._inner(*args, **kwargs)
        if self._rest:
            self._rest -= 1
            return self._compiled(*args, **kwargs)
        with self.watch.watching() as graphs:
            result = self._compiled(*args, **kwargs)
        if not graphs and torch.is_grad_enabled():
            self._rest = REST_IN_TRAINING
            return result
        try:
            self._learn(args, kwargs, result, graphs)
        except NotThin as because:
            self._give_up(str(because))
        except Exception as error:  # of a torch unlike those tried: the call itself went well
            self._give_up(f"{type(error).__name__}: {_torch_compat.first_line(str(error))}")
        return result

    def _learn(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, graphs: Sequence[GraphCall]
    ) -> None:
        seen = self._situation(args, kwargs, result, graphs)
        last, self._last = self._last, (seen.likeness, seen.containers)
        if last is None:
            return
        if last[0] != seen.likeness:
            self._rest_longer()
            return
        if {id(c) for c in last[1]} & {id(c) for c in seen.containers}:
            raise NotThin("it returns a list or dict that it keeps")
        self.call.add(self._entry(seen), ENTRIES)
        self._hooks = _hooks_in(self._module)
        self._newest_hook = self._newest(self._hooks)
        self._last, self._failures = None, 0
        self._note(
            "replaced", f"calls do without Dynamo while {len(seen.model.dicts)} dictionaries stay as they are"
        )

    def _situation(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, graphs: Sequence[GraphCall]
    ) -> Situation:
        if len(graphs) != 1:
            raise NotThin(f"a call runs {len(graphs)} compiled inference graphs")
        (graph,) = graphs
        if not graph.is_plain:
            raise NotThin("it writes to its inputs, or returns views of tensors")
        if torch.is_autocast_enabled("cpu"):
            raise NotThin("autocast is on")
        given, containers, model = [], [], Model(self._module)
        arguments = _described((args, kwargs), lambda tensor: _place_of_argument(tensor, given))
        places = {id(tensor): i for i, tensor in enumerate(graph.outputs)}
        described = _described(result, lambda tensor: _place_of_result(tensor, places), containers)
        _check_inputs(graph, given, model)
        version = self._newest(model.dicts)
        return Situation(graph, arguments, described, tuple(given), model, version, tuple(containers))

    def _entry(self, seen: Situation) -> Any:
        """Raises NotThin where guards cannot be left out."""
        code = _torch_compat.find_dynamo_code(self._function, seen.graph.compilation)
        if code is None or not _torch_compat.is_one_graph(code.code):
            raise NotThin("Dynamo's code does more than to call one graph")
        scope = {"args": (), "kwargs": {}, "function": self._inner}
        settled = seen.model.settled() | {id(self._inner)}
        try:
            guard, met = _torch_compat.reduce_guards(code.guards, scope, self._function.__globals__, settled)
        except _torch_compat.CannotReduceGuards as because:
            raise NotThin(str(because)) from because
        slots = {id(tensor): i for i, tensor in enumerate(seen.given)}
        inputs = tuple(slots.get(id(tensor), tensor) for tensor in seen.graph.inputs)
        run, order = _shortcut(seen.graph, self._write_addresses)
        pinned = met | {id(tensor) for tensor in seen.graph.inputs if id(tensor) not in slots}
        tensors = tuple(seen.model.tensors[key] for key in pinned)
        return self._make_entry(
            seen.arguments,
            seen.result,
            seen.given,
            seen.model.modules,
            seen.model.dicts,
            tensors,
            tuple(inputs[i] for i in order),
            guard,
            scope,
            run,
        )

    def _see_hooks(self) -> None:
        """Dynamo, which has no guards of hooks, shall look again; of one who changes many, not for ever."""
        self._hooks = _hooks_in(self._module)
        self._newest_hook = self._newest(self._hooks)
        self._hook_changes += 1
        _torch_compat.forget_code(self._function)
        if self._hook_changes == MOST_HOOK_CHANGES + 1:
            self._note("fell-back", f"it runs eagerly: its hooks changed more than {MOST_HOOK_CHANGES} times")

    def _give_up(self, because: str) -> None:
        self._last = None
        self._rest_longer()
        self._note("kept", f"calls stay with Dynamo: {because}")

    def _rest_longer(self) -> None:
        self._failures = min(self._failures + 1, LONGEST_REST)
        self._rest = 2**self._failures

    def _note(self, action: str, because: str) -> None:
        """A model may come here many times for one reason."""
        if because not in self._said:
            self._said.add(because)
            self._ledger.note(STEP, type(self._module).__name__, action, because)


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
    """Raise NotThin for an input that is neither an argument nor the model's, or one that comes out."""
    known = {id(tensor) for tensor in given} | set(model.tensors)
    if any(id(value) not in known for value in graph.inputs):
        raise NotThin("its graph reads a tensor that is neither argument, parameter, buffer nor attribute")
    if any(id(tensor) in model.tensors for tensor in given):
        raise NotThin("it is given a tensor of its own")
    memory = {t.untyped_storage().data_ptr() for t in graph.inputs} - {0}
    if any(isinstance(t, Tensor) and t.untyped_storage().data_ptr() in memory for t in graph.outputs):
        raise NotThin("a result shares memory with an input")


def _shortcut(graph: GraphCall, write: WriteAddresses) -> Shortcut:
    if isinstance(graph.run, Executor):
        graph.run.write_addresses_by(write)
        return graph.run.shortcut
    return Shortcut(graph.run, tuple(range(len(graph.inputs))))


def _dicts_of(module: nn.Module) -> dict[str, Any]:
    """The dictionaries that hold the module's parts, by name."""
    found = {name: vars(module).get(name) for name in _DICTS}
    if any(type(value) not in (dict, OrderedDict) for value in found.values()):
        raise NotThin(f"a {type(module).__name__!r} does not keep its parts as nn.Module does")
    if any(found[name] for name in _HOOKS):
        raise NotThin(f"a {type(module).__name__!r} has hooks")
    return found


def _hooks_in(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    found = [vars(part).get(name) for part in module.modules() for name in _HOOKS]
    return tuple(hooks for hooks in found if isinstance(hooks, dict))


def _text(description: Description) -> str:
    """Tells True from 1 and 0.0 from -0.0, which are equal."""
    return repr(description)
