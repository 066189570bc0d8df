"""Calls of an optimised module or function without Dynamo, which costs ten to thirty microseconds a call.

A call through Dynamo is watched. If all it did was to fetch tensors, run one compiled graph and hand out what
that returned, and the next one does the same, the situation is remembered: modes, arguments, model, and the
guards of Dynamo that none of these implies. Where they still hold, later calls run that graph at once; any
other call goes through Dynamo, which sees every change as it always does, and may be remembered in its turn.

A call in which no kernel of ours ran is remembered too: later ones like it are the model's own, eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from wolong_fx import _torch_compat
from wolong_fx.capture.stores import Store, find_stores
from wolong_fx.capture.watch import BoxedCallable, GraphCall, TrainingGraphs, Watch
from wolong_fx.ledger import Ledger
from wolong_fx.places import modules_of, places_of
from wolong_fx.runtime import Executor, Shortcut
from wolong_fx.runtime.autograd_step import StepGraphs, autograd_step
from wolong_fx.runtime.direct_call import DirectCall, EntryParts
from wolong_fx.situation import Model, NotThin, Situation, hooks_in
from wolong_fx.steady_guards import find_steady_guards

STEP = "thin-path"  # of the ledger
ENTRIES = 8  # situations kept of a model: as many as Dynamo's graphs of a function, by default

LONGEST_REST = 10
"""After failing n times in a row to remember a call, the next 2**n are not watched; n is at most this."""

MOST_HOOK_CHANGES = 8
"""Each compiles the model anew, as many times as Dynamo compiles a function by default."""


class ThinPath:
    """The call of one module or function: `call` stands where nn.Module.__call__ looks for the compiled one.

    function: what Dynamo compiles, a call of its own of `inner`, a function or a module's method
    watch: over the graphs that the calls run
    """

    def __init__(self, name: str, inner: Callable[..., Any], function: FunctionType) -> None:
        self.watch = Watch()
        self._name, self._inner, self._function = name, inner, function
        self._last: tuple[object, tuple[Any, ...]] | None = None  # likeness, and containers kept alive
        self._failures = self._rest = self._hook_changes = 0
        self._said: set[str] = set()

    def open(self, compiled: Callable[..., Any], direct: DirectCall, ledger: Ledger) -> Callable[..., Any]:
        """What to call from now on; `compiled` itself where the extension is missing, which the ledger hears.

        compiled: `function` through Dynamo
        """
        self._compiled, self._ledger = compiled, ledger
        helpers = direct.helpers
        if direct.call is None or direct.entry is None or direct.newest is None or helpers is None:
            self._note("kept", direct.because)
            return compiled
        self._make_entry, self._newest, self._helpers = direct.entry, direct.newest, helpers
        self._hooks = hooks_in(modules_of(self._inner))
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
        model = Model(modules_of(self._inner), places_of(self._inner))
        seen = Situation.of((args, kwargs), result, graphs, model, self._newest(model.dicts))
        last, self._last = self._last, (seen.likeness, seen.containers)
        if last is None:
            return
        if last[0] != seen.likeness:
            self._rest_longer()
            return
        if {id(c) for c in last[1]} & {id(c) for c in seen.containers}:
            raise NotThin("it returns a list or dict that it keeps")
        self.call.add(self._make_entry(*self._parts(seen)), ENTRIES)
        self._hooks = hooks_in(modules_of(self._inner))
        self._newest_hook = self._newest(self._hooks)
        self._last, self._failures = None, 0
        self._note_entry(seen)

    def _parts(self, seen: Situation) -> EntryParts:
        """Raises NotThin where guards cannot be left out."""
        model = seen.model
        places = tuple((place.container, place.key, place.value) for place in model.places)
        own = EntryParts(seen.arguments, seen.given, model.modules, model.dicts, places, self._inner)
        if seen.graph is None or seen.result is None:
            return own
        run, order = self._shortcut(seen.graph)
        guards, scope, met = self._guard(seen, seen.graph)
        steady = find_steady_guards(guards, {"L": scope, "G": self._function.__globals__})
        slots = {id(tensor): i for i, tensor in enumerate(seen.given)}
        inputs = [slots.get(id(tensor), tensor) for tensor in seen.graph.inputs]
        pinned = met | {id(tensor) for tensor in seen.graph.inputs if id(tensor) not in slots}
        return own._replace(
            function=run,
            result=seen.result.description,
            tensors=tuple(model.tensors[key] for key in pinned),
            inputs=tuple(inputs[i] for i in order),
            written=tuple(order.index(i) for i in seen.graph.written or ()),
            moves_versions=seen.graph.training is None,
            guard=guards.check,
            rest=steady.rest,
            namespaces=steady.namespaces,
            scope=scope,
        )

    def _guard(self, seen: Situation, graph: GraphCall) -> tuple[Any, dict[str, Any], set[int]]:
        """The tree of the guards that the situation does not imply; its scope; the model's tensors it met."""
        code = _torch_compat.find_dynamo_code(self._function, graph.compilation)
        stores = None if code is None else find_stores(code.code)
        scope = {"args": (), "kwargs": {}, "function": self._inner}
        if code is None or stores is None or not all(_is_idle(store, scope, seen) for store in stores):
            raise NotThin("Dynamo's code does more than to call one graph")
        settled = seen.model.settled() | {id(self._inner)}
        names = {"L": scope, "G": self._function.__globals__}
        roots = {"L['function']", *(place.source for place in seen.model.places)}
        try:
            guards, met = _torch_compat.reduce_guards(code.guards, names, settled, roots)
        except _torch_compat.CannotReduceGuards as because:
            raise NotThin(str(because)) from because
        return guards, scope, met

    def _shortcut(self, graph: GraphCall) -> Shortcut:
        if graph.training is not None:
            return Shortcut(_training_call(graph, graph.training), tuple(range(len(graph.inputs))))
        if isinstance(graph.run, Executor):
            graph.run.launch_with(self._helpers)
            if set(graph.written or ()) <= set(graph.run.shortcut.order):
                return graph.run.shortcut
        return Shortcut(graph.run, tuple(range(len(graph.inputs))))

    def _note_entry(self, seen: Situation) -> None:
        dicts = f"while {len(seen.model.dicts)} dictionaries stay as they are"
        if seen.graph is None:
            self._note("fell-back", f"no kernel comes of it: calls are the model's own {dicts}")
        else:
            self._note("replaced", f"calls do without Dynamo {dicts}")

    def _see_hooks(self) -> None:
        """Dynamo, which has no guards of hooks, shall look again; of one who changes many, not for ever."""
        self._hooks = hooks_in(modules_of(self._inner))
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
            self._ledger.note(STEP, self._name, action, because)


def _is_idle(store: Store, scope: dict[str, Any], seen: Situation) -> bool:
    """Whether a store of Dynamo's code always leaves a dictionary of the model as it is.

    `self.count += 1` writes a tensor in place, which the graph does, and stores it where it stood.
    """
    if seen.graph is None or store.output not in seen.graph.returned:
        return False
    holder = eval(store.holder, {}, scope)
    if any(holder is module for module in seen.model.modules):
        holder = vars(holder)
    elif not any(holder is known for known in seen.model.dicts):
        return False
    return holder.get(store.key) is seen.graph.inputs[seen.graph.returned[store.output]]


def _training_call(graph: GraphCall, training: TrainingGraphs) -> BoxedCallable:
    """From the inputs of the whole graph to its results: by our own call of its halves, if that will do."""
    given, layout = training.given or (), training.layout
    if training.forward is None or training.backward is None or layout is None:
        return graph.run
    if len(given) != len(graph.inputs):
        return graph.run
    pairs = list(zip(graph.inputs, given, strict=True))
    detached = tuple(i for i, (mine, theirs) in enumerate(pairs) if mine is not theirs)
    if any(pairs[i][0].data_ptr() != pairs[i][1].data_ptr() for i in detached):
        return graph.run
    graphs = StepGraphs(training.forward, training.backward, layout, training.gradients, detached)
    return autograd_step(graphs)
