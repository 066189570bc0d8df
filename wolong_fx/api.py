"""What users import: optimize() as call, decorator or context; deoptimize(); stats().

An optimised module stays the object it was. Its `__dict__` gains two entries: the compiled call, which
`nn.Module.__call__` looks for and leaves out of pickles and copies, and a marker, which arms deep copies.
"""

from __future__ import annotations

import functools
import logging
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self, TypeVar, overload

import torch
from torch import nn

from wolong_fx import _torch_compat
from wolong_fx.capture.collector import collector_paused, count_as_old
from wolong_fx.capture.record import Record, Stats, summarise
from wolong_fx.errors import CannotOptimize, RunsEagerly
from wolong_fx.methods import Methods
from wolong_fx.options import Options, is_enabled
from wolong_fx.runtime.direct_call import find_direct_call, prepare_direct_call
from wolong_fx.thin_path import ThinPath

logger = logging.getLogger("wolong_fx")

MARKER = "_wolong_fx"
COMPILED_CALL = "_compiled_call_impl"  # nn.Module.__call__ reads it, nn.Module.__getstate__ drops it

T = TypeVar("T", bound=Callable[..., Any])
Call = Callable[..., Any]


@overload
def optimize(model: T, /, **options: Any) -> T: ...
@overload
def optimize(model: None = None, /, **options: Any) -> Callable[[T], T]: ...
def optimize(model: Any = None, /, **options: Any) -> Any:
    """Compile a model, in place, at its first call.

    As a call, `optimize(model)` returns the same module. As a decorator, with or without options, it takes a
    function, or a class of modules whose instances are then all optimised. As a context,
    `with optimize(model):` undoes it at the end. A function comes back as a callable that stands for it.

    Calls that are like two before them do without Dynamo: they run the compiled graph at once, in training
    with its backward, after a check that sees what Dynamo's guards see, and hooks besides. Not seen are

    - writes to weights that move no version counter: in place through `p.data`, or from C++;
    - methods of the model's classes that were replaced, which Dynamo does not guard;
    - what else a trace read once: files, the environment, the clock;
    - on torch before 2.13, new defaults of a function's parameters, which Dynamo guards only since then.

    verify="always" sees the first two: it keeps nothing that was made of weights, sends every call through
    Dynamo, and traces anew when a method changed. Nothing but `deoptimize` sees the others.

    Options are the fields of `wolong_fx.Options`. `model(...)` is compiled, for inference and training, once
    for each set of input shapes and modes; `model.forward(...)` and calls of its submodules stay as they are.
    Deep copies are optimised like their original, pickles load as plain modules, WOLONG=0 changes nothing.

    Raises UnknownOption, BadOptionValue, or CannotOptimize for what is neither module, class of modules nor
    function.
    """
    chosen = Options.of(where="optimize(...)", **options)
    return functools.partial(_optimize, options=chosen) if model is None else _optimize(model, chosen)


def deoptimize(target: Any) -> Any:
    """Undo `optimize`: returns the module or class itself, of a function the original, others as they are."""
    if isinstance(target, OptimizedFunction):
        return target.__wrapped__
    if isinstance(target, nn.Module):
        _disarm(target)
    elif _is_module_class(target):
        _disarm_class(target)
    return target


def stats(target: Any = None) -> Stats:
    """What was compiled so far for an optimised module (and modules in it) or function.

    Without a target: for all models that came in by torch.compile(backend="wolong"), which does not say for
    which model it calls. What is not optimised has empty statistics.
    """
    if target is None:
        from wolong_fx.backend import torch_compile_record

        return summarise([torch_compile_record])
    if isinstance(target, OptimizedFunction):
        return summarise([target.compilation.record])
    modules = target.modules() if isinstance(target, nn.Module) else ()
    return summarise(marker.compilation.record for marker in map(_find_marker, modules) if marker)


class Compilation:
    """A function or the call of a module, compiled by torch.compile with our backend at its first call.

    inner: what `function` calls, which has a code of its own
    install: is given what to call from the second call on
    thin: by which later calls may do without Dynamo
    """

    def __init__(
        self,
        inner: Call,
        function: types.FunctionType,
        options: Options,
        name: str,
        install: Callable[[Call], None],
        thin: ThinPath | None,
    ) -> None:
        self.options, self.name = options, name
        self.record = Record(watch=None if thin is None else thin.watch)
        self._inner, self._function, self._install, self._thin = inner, function, install, thin
        self._is_warned = self._is_eager = False

    def first_call(self, *args: Any, **kwargs: Any) -> Any:
        """Compile and call; afterwards say so if nothing was compiled."""
        known = len(_torch_compat.graph_breaks())
        if self._thin is not None:
            prepare_direct_call(self.options)
        with collector_paused():
            self._install(self.compiled)  # the first mention imports torch's compiler
            count_as_old()
        try:
            with collector_paused():
                result = self.compiled(*args, **kwargs)
        except BaseException:
            self._install(self.first_call)
            raise
        finally:
            self.record.note_graph_breaks(_torch_compat.graph_breaks()[known:])
        if not self.record.graphs:
            self._warn_once(self._why_never_compiled())
        if self._thin is not None and not self._is_eager:
            self._install(self._thin.open(self.compiled, find_direct_call(self.options), self.record.capture))
        return result

    @functools.cached_property
    def compiled(self) -> Call:
        """The compiled function, which runs eagerly where torch.compile itself fails.

        Shapes are static: every kernel is made for the shapes that it runs on.
        """
        from wolong_fx.backend import Backend

        backend = Backend(self.options, self.record)
        compiled = torch.compile(self._function, backend=backend, dynamic=False)
        failures = _torch_compat.failures_of_dynamo()

        methods = Methods(self._inner) if self.options.verify == "always" else None

        def call(*args: Any, **kwargs: Any) -> Any:
            if methods is not None and methods.have_changed():
                _torch_compat.forget_code(self._function)
            try:
                return compiled(*args, **kwargs)
            except failures as error:
                failure = error
            except Exception:  # of the model, say for a bad input: the next call is a good one
                _torch_compat.trace_again(self._function)
                raise
            return self._call_after(failure, args, kwargs)

        return call

    def _call_after(self, failure: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Tracing failed: a mistake in the model raises here as it does in eager; else the model stays eager.

        Tracing has no effects, so that calling again is sound, unless a graph break let a part run already.
        """
        if self.record.has_graph_breaks:
            raise failure
        result = self._function(*args, **kwargs)
        because = f"torch.compile failed ({_torch_compat.first_line(str(failure))})"
        self.record.capture.note("dynamo", self.name, "fell-back", because)
        self._warn_once(because)
        self._is_eager = True
        self._install(self._function)
        return result

    def _warn_once(self, because: str) -> None:
        if not self._is_warned:
            logger.warning("%s", RunsEagerly(name=self.name, because=because))
        self._is_warned = True

    def _why_never_compiled(self) -> str:
        if _torch_compat.is_dynamo_disabled():
            return "torch.compile is turned off in this process (TORCHDYNAMO_DISABLE)"
        reasons = list(self.record.capture.fallbacks())
        return "; ".join(reasons[:3]) or "torch.compile skipped its code, or found no tensor operator in it"


class OptimizedFunction:
    """Stands for a function: as a method, in pickles, for inspection, and within other compiled models."""

    __wrapped__: Call

    def __init__(self, function: Call, options: Options) -> None:
        functools.update_wrapper(self, function)
        name = getattr(function, "__qualname__", repr(function))
        own = _with_own_code(function, f"call_{getattr(function, '__name__', 'function')}")
        thin = ThinPath(name, function, own) if options.verify != "always" else None
        self.compilation = Compilation(function, own, options, f"function {name!r}", self._use, thin)
        self._use(self.compilation.first_call if is_enabled() else function)

    def _use(self, call: Call) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # traced by Dynamo: the function joins the graph of its caller
            return self.__wrapped__(*args, **kwargs)
        return self._call(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str:
        return self.__wrapped__.__qualname__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._use(self.__wrapped__)


class Marker:
    """Says that a module is optimised, and how. Arms the module's deep copies; is nothing in its pickles."""

    def __init__(self, module: nn.Module, options: Options) -> None:
        self.module = module
        self.previous = module.__dict__.get(COMPILED_CALL)
        name = f"model {type(module).__name__!r}"
        inner = module._call_impl
        call = _with_own_code(inner, f"call_{type(module).__name__}")
        thin = ThinPath(type(module).__name__, inner, call) if options.verify != "always" else None
        self.compilation = Compilation(inner, call, options, name, self._use, thin)
        self._use(self.compilation.first_call)

    def _use(self, call: Call) -> None:
        self.module.__dict__[COMPILED_CALL] = call

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.module))  # copy.deepcopy enters the copy here before it copies its __dict__
        return OrderedDict() if copied is None else Marker(copied, self.compilation.options)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # An empty standard value, so that pickles load without this package and with weights_only.
        return OrderedDict, ()


class ArmAtFirstCall:
    """Stands on a decorated class where `nn.Module.__call__` looks for an instance's compiled call."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.armed: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Call | None:
        if module is None or not is_enabled():
            return None
        _arm(module, self.options)
        self.armed.add(module)
        return module.__dict__[COMPILED_CALL]


def _optimize(target: Any, options: Options) -> Any:
    if isinstance(target, nn.Module):
        _make_context_manager(type(target))
        if is_enabled():
            _arm(target, options)
        return target
    if _is_module_class(target):
        setattr(target, COMPILED_CALL, ArmAtFirstCall(options))
        return target
    if isinstance(target, type) or not callable(target):
        raise CannotOptimize(kind=type(target).__name__, target=target)
    return OptimizedFunction(deoptimize(target), options)


def _arm(module: nn.Module, options: Options) -> None:
    _disarm(module)
    module.__dict__[MARKER] = Marker(module, options)


def _disarm(module: nn.Module) -> None:
    marker = _find_marker(module)
    if marker is None:
        return
    del module.__dict__[MARKER]
    # None, not absent: an instance of a decorated class would arm itself again.
    module.__dict__[COMPILED_CALL] = marker.previous


def _disarm_class(kind: type[nn.Module]) -> None:
    entry = kind.__dict__.get(COMPILED_CALL)
    if isinstance(entry, ArmAtFirstCall):
        delattr(kind, COMPILED_CALL)
        for module in list(entry.armed):
            _disarm(module)


def _find_marker(module: nn.Module) -> Marker | None:
    """The marker of this very module: a shallow copy shares its original's, and is not optimised."""
    marker = module.__dict__.get(MARKER)
    return marker if isinstance(marker, Marker) and marker.module is module else None


def _is_module_class(target: object) -> bool:
    return isinstance(target, type) and issubclass(target, nn.Module)


def _with_own_code(function: Call, name: str) -> types.FunctionType:
    """A call of `function` with a code object of its own.

    Dynamo keeps its graphs, counts recompilations and remembers what to skip by code object. On the shared
    `nn.Module._call_impl` all models of a process would share one limit of eight, and one verdict.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=name)
    return call


def _make_context_manager(kind: type[nn.Module]) -> None:
    """`with` looks for its methods on the type, and optimize() returns the user's own object."""
    if not hasattr(kind, "__enter__") and not hasattr(kind, "__exit__"):
        kind.__enter__ = _enter  # type: ignore[attr-defined]
        kind.__exit__ = _exit  # type: ignore[attr-defined]


def _enter(module: nn.Module) -> nn.Module:
    return module


def _exit(module: nn.Module, *_: object) -> None:
    _disarm(module)
