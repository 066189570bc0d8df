"""Every private torch import of Wolong FX, each with the versions it was tried on. No other file has any.

All imports are inside functions: torch._dynamo alone costs a second, and only compiling a model needs it.
"2.11, 2.13" in a docstring: tried on torch 2.11.0 with Python 3.12 and on torch 2.13.0 with Python 3.11.
"""

from __future__ import annotations

import contextlib
import functools
import re
import traceback
import types
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class GraphBreak:
    """A place where Dynamo gave up tracing and went back to Python."""

    reason: str
    stack_trace: str

    @property
    def meta(self) -> dict[str, str]:
        """As an fx.Node has it: the ledger finds the user's line in it."""
        return {"stack_trace": self.stack_trace}

    @property
    def innermost(self) -> tuple[str, ...]:
        """The last frame of the trace: its place and its line."""
        return tuple(self.stack_trace.splitlines()[-2:])

    def __str__(self) -> str:
        return "graph break"


def run_aot_autograd(gm: fx.GraphModule, inputs: Sequence[Any], **compilers: Any) -> Callable[..., Any]:
    """AOTAutograd over a Dynamo graph: `torch._dynamo.backends.common.aot_autograd`. 2.11, 2.13."""
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(**compilers)(gm, inputs)


def min_cut_partition(joint: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> tuple[Any, Any]:
    """Forward and backward of a joint graph, saving as little as a minimum cut allows. 2.13.

    Views are made again in the backward, where they cost nothing: saved, each would be an ATen call and an
    output of the forward, say one a time step of an input that is saved as a whole anyway.
    """
    from torch._functorch import config
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    with config.patch({name: True for name in ("recompute_views",) if hasattr(config, name)}):
        return min_cut_rematerialization_partition(joint, inputs, **kwargs)


def recompute_in_backward(node: fx.Node) -> None:
    """Have `min_cut_partition` keep what this node of a joint graph reads, not what it computes. 2.13.

    As activation checkpointing does; the partitioner's own list of what is cheap to compute again is short.
    """
    from torch.utils.checkpoint import CheckpointPolicy

    node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE


def count_forward_results() -> int | None:
    """How many results of the forward graph that AOTAutograd compiles now are for its caller. 2.13.

    Those behind them are for the backward alone. None where that is not known.
    """
    from torch._guards import TracingContext

    metadata = getattr(TracingContext.try_get(), "fw_metadata", None)
    if metadata is None or getattr(metadata, "tokens", None):
        return None
    return getattr(metadata, "num_forward", None)


def forget_static_inputs(
    gm: fx.GraphModule, inputs: Sequence[Any], is_weight: Callable[[Any, bool], bool]
) -> None:
    """Have Dynamo's graph name as static only those inputs that `is_weight(tensor, is_buffer)`. 2.13.

    Dynamo marks every tensor it finds in a module, also a state that is another tensor after each call; the
    marks become `ViewAndMutationMeta.static_input_indices`, which follow AOTAutograd's changes of the inputs.
    """
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=False):
        described = node.meta.get("tensor_dict")
        is_buffer = "_buffers[" in _source_name(getattr(node, "_dynamo_source", None))
        if described and not is_weight(value, is_buffer):
            described.pop("_dynamo_static_input_type", None)


def copy_dynamo_facts(given: fx.GraphModule, made: fx.GraphModule) -> None:
    """Let AOTAutograd know of a graph what Dynamo noted about the one that it was made from. 2.11, 2.13.

    Where inputs come from and which of them stay between calls. Both graphs have the same inputs.
    """
    made.meta = dict(given.meta)
    if hasattr(given, "_param_name_to_source"):
        made._param_name_to_source = given._param_name_to_source
    inputs = (gm.graph.find_nodes(op="placeholder") for gm in (given, made))
    for old, new in zip(*inputs, strict=True):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source


def _source_name(source: Any) -> str:
    name = getattr(source, "name", "")  # a method until 2.11
    return str(name() if callable(name) else name)


def find_static_inputs(gm: fx.GraphModule) -> frozenset[int]:
    """Positions of the inputs that stay between calls, of the graph that AOTAutograd compiles now. 2.13.

    Without those that the graph itself changes. A hint: nothing says that they have the same content.
    """
    from torch._guards import TracingContext

    metadata = getattr(TracingContext.try_get(), "fw_metadata", None)
    described = getattr(metadata, "input_info", ())
    if metadata is None or len(described) != len(gm.graph.find_nodes(op="placeholder")):
        return frozenset()
    static = getattr(metadata, "static_input_indices", None) or ()
    return frozenset(i for i in static if not getattr(described[i], "mutates_data", True))


def remove_common_subexpressions(graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` without repeated pure operators, by functorch's `fx_graph_cse`. 2.11, 2.13."""
    from torch._functorch.compile_utils import fx_graph_cse

    return fx_graph_cse(graph)


def get_decompositions(operators: Sequence[Any]) -> dict[Any, Callable[..., Any]]:
    """torch's own decompositions of these operators: `torch._decomp.get_decompositions`. 2.11, 2.13."""
    from torch._decomp import get_decompositions as get

    return dict(get(operators))


def tree_leaves(tree: Any) -> list[Any]:
    """The leaves of nested lists, tuples and dicts: `torch.utils._pytree.tree_leaves`. 2.11, 2.13."""
    from torch.utils._pytree import tree_leaves as leaves  # torch.utils.pytree is younger than 2.11

    return leaves(tree)


@contextlib.contextmanager
def settings_for_aot() -> Iterator[None]:
    """functorch settings under which a compiled backward keeps eager's promises. 2.11, 2.13.

    Donated buffers would make `backward(retain_graph=True)` an error that eager does not raise.
    """
    from torch._functorch import config

    with config.patch({name: False for name in ("donated_buffer",) if hasattr(config, name)}):
        yield


def donate_no_buffers() -> None:
    """Have the wrapper of the graph that AOTAutograd compiles now allow retained graphs. 2.11, 2.13.

    It refuses them unless the donated buffers are said to be none, and `settings_for_aot` leaves that unsaid.
    """
    from torch._guards import TracingContext

    metadata = getattr(TracingContext.try_get(), "fw_metadata", None)
    if metadata is not None:
        metadata.bw_donated_idxs = []


_TENSOR_GUARDS = "skip_tensor_guards_with_matching_dict_tags"


def guard_every_tensor() -> None:
    """Have the compilation that is under way guard what a parameter is, not only which it is. 2.11, 2.13.

    By default Dynamo takes the tensors of a module for unchanged while its dictionaries are: on 2.11 it then
    misses `requires_grad_()`. The switch is read when guards are made, right after the backend returns; it is
    put back when the compilation ends.
    """
    from torch._dynamo import config
    from torch._dynamo.callback import callback_handler

    if not getattr(config, _TENSOR_GUARDS, False):
        return
    # Left registered: a callback that removed itself would make Dynamo skip the next. `reset()` removes it.
    if _restore_tensor_guards not in callback_handler.end_callbacks:
        callback_handler.register_end_callback(_restore_tensor_guards)
    setattr(config, _TENSOR_GUARDS, False)


def _restore_tensor_guards(*_: Any) -> None:
    from torch._dynamo import config

    setattr(config, _TENSOR_GUARDS, True)


@contextlib.contextmanager
def without_mkldnn() -> Iterator[None]:
    """oneDNN off, and only that: `torch.backends.mkldnn.flags` also sets TF32, and warns. 2.11, 2.13."""
    was = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was)


def is_control_flow_of_dynamo(error: BaseException) -> bool:
    """Exceptions with which a backend asks Dynamo to retrace; they are not failures. 2.11, 2.13."""
    from torch._dynamo import exc

    names = ("TensorifyScalarRestartAnalysis", "RestartAnalysis", "SkipFrame")
    return isinstance(error, tuple(getattr(exc, name) for name in names if hasattr(exc, name)))


def failures_of_dynamo() -> tuple[type[Exception], ...]:
    """What torch.compile raises, in place of what the model raises, when tracing fails. 2.11, 2.13."""
    from torch._dynamo import exc

    return (exc.TorchDynamoException,)


def trace_again(function: Callable[..., Any]) -> None:
    """Let Dynamo look at the code of `function` again after it decided to skip it.

    A call that ends in an exception of the model makes it skip that code for ever. 2.13.
    """
    from torch._C._dynamo.eval_frame import set_code_exec_strategy
    from torch._dynamo import types

    code = getattr(function, "__code__", None)
    if code is not None and hasattr(types, "FrameExecStrategy"):
        default = types.FrameAction.DEFAULT  # type: ignore[attr-defined]
        set_code_exec_strategy(code, types.FrameExecStrategy(default, default))  # type: ignore[attr-defined]


def innermost_backend(compiler: Any) -> Any:
    """The backend function below the wrappers of torch.compile and Dynamo. 2.11, 2.13.

    Wrappers: `_torchdynamo_orig_backend` (Dynamo), `compiler_fn` (torch._TorchCompileWrapper).
    """
    for _ in range(16):
        below = getattr(compiler, "_torchdynamo_orig_backend", None) or getattr(compiler, "compiler_fn", None)
        if below is None:
            break
        compiler = below
    return compiler


def trace_rnn_modules_for(is_ours: Callable[[Any], bool]) -> bool:
    """Let Dynamo trace nn.LSTM, nn.GRU and nn.RNN into graphs for a backend that `is_ours` accepts.

    By default it graph-breaks on them (pytorch#158007), so that a model around an RNN compiles nothing.
    `torch._dynamo.config.allow_rnn` is global and would change what other backends see: it is turned on only
    inside `VariableBuilder.wrap_module`, the one reader of it, and only for our graphs. False when this
    torch has no such place; the models then run eagerly and a warning says so. 2.11, 2.13.
    """
    from torch._dynamo import config
    from torch._dynamo.variables.builder import VariableBuilder

    wrap = getattr(VariableBuilder, "wrap_module", None)
    if wrap is None or not hasattr(config, "allow_rnn"):
        return False
    if getattr(wrap, "_is_wolong_patch", False):
        return True

    @functools.wraps(wrap)
    def wrap_module(self: Any, value: torch.nn.Module) -> Any:
        backend = innermost_backend(self.tx.output.compiler_fn)
        if not isinstance(value, torch.nn.RNNBase) or not is_ours(backend):
            return wrap(self, value)
        with config.patch(allow_rnn=True):
            return wrap(self, value)

    wrap_module._is_wolong_patch = True  # type: ignore[attr-defined]
    VariableBuilder.wrap_module = wrap_module
    return True


def graph_breaks() -> list[GraphBreak]:
    """Graph breaks of this process since Dynamo was last reset, oldest first. 2.11, 2.13."""
    from torch._dynamo.utils import graph_break_reasons

    return [GraphBreak(_reason(str(r.reason)), _traced(r.user_stack)) for r in graph_break_reasons]


def is_dynamo_disabled() -> bool:
    """True when TORCHDYNAMO_DISABLE=1 or its config twin turns torch.compile off. 2.11, 2.13."""
    from torch._dynamo import config

    return bool(getattr(config, "disable", False))


def current_frame() -> int | None:
    """Number of the Python frame that Dynamo is compiling now; None outside of a compilation. 2.11, 2.13."""
    from torch._guards import CompileContext

    compile_id = CompileContext.current_compile_id()
    return getattr(compile_id, "frame_id", None)


def find_empty_strided_cpu() -> Callable[..., torch.Tensor]:
    """Makes a tensor on the CPU of (shape, strides, dtype), its content undefined, whatever modes say. 2.13.

    The one of Inductor's kernels takes half the time of `new_empty_strided`.
    """
    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    empty = getattr(guards, "_empty_strided_cpu", None)
    return empty or (
        lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device="cpu")
    )


def find_empty_strided_cuda() -> Callable[..., torch.Tensor]:
    """As find_empty_strided_cpu, on the current CUDA device. Written against 2.13."""
    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    empty = getattr(guards, "_empty_strided_cuda", None)
    return empty or (
        lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device="cuda")
    )


def find_current_raw_stream() -> Callable[[int], int]:
    """The handle of the current stream of a device: a tenth of what making a Stream takes. Written against
    2.13; it is what Triton launches with."""
    found = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return found or (lambda device: torch.cuda.current_stream(device).cuda_stream)


def fake_mode() -> Any:
    """A mode in which tensors have metadata and no data, with static shapes. 2.11, 2.13."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def lazy_graph_module(root: torch.nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A GraphModule that writes its code when first called: half the time of cutting. 2.11, 2.13."""
    from torch.fx._lazy_graph_module import _LazyGraphModule

    return _LazyGraphModule(root, graph)


def outside_fake_mode() -> contextlib.AbstractContextManager[Any]:
    """AOTAutograd calls its compilers in a fake mode, where every new tensor is a fake. 2.11, 2.13."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


def trace_to_aten(
    function: Callable[..., Any], inputs: Sequence[Any], table: Mapping[Any, Any]
) -> fx.GraphModule:
    """`function` of these tensors as functional ATen with fake values and static shapes. 2.11, 2.13.

    Operators that torch decomposes in Python need the Python dispatcher. Provenance comes from the meta of
    the nodes that an fx.Interpreter inside of `function` runs.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.traceback import preserve_node_meta

    functional = torch.func.functionalize(function, remove="mutations")
    with enable_python_dispatcher(), preserve_node_meta():
        return make_fx(functional, decomposition_table=dict(table), tracing_mode="fake")(*inputs)


def flatten(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The leaves of nested tuples, lists and dicts, and what puts others in their places. 2.11, 2.13."""
    from torch.utils import _pytree

    leaves, spec = _pytree.tree_flatten(tree)
    return leaves, lambda values: _pytree.tree_unflatten(list(values), spec)


@dataclass(frozen=True)
class TensorAccess:
    """How C reads a tensor that Python holds.

    offset: bytes from the Python object to the at::Tensor in it
    version: address of `int64_t at::TensorBase::_version() const`
    data_pointer: address of `int aoti_torch_get_data_ptr(at::Tensor*, void**)`; it is 0 when all is well
    """

    offset: int
    version: int
    data_pointer: int


@functools.cache
def find_tensor_access() -> TensorAccess | None:
    """None where this torch does not answer as expected: every part is tried on tensors first. 2.11, 2.13.

    An object of 2.11 holds a flag before its at::Tensor, one of 2.13 does not: so the offset is looked for.
    """
    import ctypes
    from pathlib import Path

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        version, data = library._ZNK2at10TensorBase8_versionEv, library.aoti_torch_get_data_ptr
    except (OSError, AttributeError):
        return None
    version.restype, version.argtypes = ctypes.c_int64, (ctypes.c_void_p,)
    data.restype, data.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)
    probes = [torch.nn.Parameter(torch.ones(3)), torch.ones(2, 2).mul_(2), torch.ones(0), torch.ones(9)[2:]]
    found = {_offset_of_tensor(probe) for probe in probes}
    offset = found.pop()
    if found or offset is None:
        return None
    for probe in probes:
        at, pointer = id(probe) + offset, ctypes.c_void_p()
        if version(at) != probe._version or data(at, ctypes.byref(pointer)):
            return None
        if (pointer.value or 0) != probe.data_ptr():
            return None
    addresses = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (version, data))
    return TensorAccess(offset, *addresses)


def _offset_of_tensor(tensor: torch.Tensor) -> int | None:
    """Where in the Python object the pointer to the TensorImpl stands; None if not in exactly one place."""
    import ctypes

    words = type(tensor).__basicsize__ // 8
    content = (ctypes.c_uint64 * words).from_address(id(tensor))
    places = [i for i in range(words) if content[i] == tensor._cdata]
    return 8 * places[0] if len(places) == 1 else None


def compile_id() -> str:
    """What Dynamo calls the compilation that is under way; "" outside of one. 2.11, 2.13."""
    from torch._guards import CompileContext

    return str(CompileContext.current_compile_id() or "")


def find_written_inputs() -> tuple[int, ...] | None:
    """Positions of the inputs that the graph which AOTAutograd compiles now writes itself. 2.13.

    Before a call its wrapper moves their version counters, and that is all it does. None where it does more
    (returns aliases, writes inputs after the graph ran, writes what autograd is not to see) or is not known.
    """
    from torch._guards import TracingContext

    metadata = getattr(TracingContext.try_get(), "fw_metadata", None)
    outputs = getattr(metadata, "output_info", None)
    if metadata is None or outputs is None or getattr(metadata, "tokens", True):
        return None
    kinds = {output.output_type.name for output in outputs}
    if not kinds <= {"non_alias", "unsafe_view_alias", "is_input"} or not all(
        map(_is_left_or_written, metadata.input_info)
    ):
        return None
    return tuple(i for i, given in enumerate(metadata.input_info) if given.mutates_data)


def find_returned_inputs() -> dict[int, int]:
    """Of the results of the graph that AOTAutograd compiles now, those that are inputs themselves. 2.13.

    By position. Its wrapper returns the input, whatever the graph returns there. Empty where the graph
    returns something before its results.
    """
    from torch._guards import TracingContext

    metadata = getattr(TracingContext.try_get(), "fw_metadata", None)
    if any(getattr(metadata, name, True) for name in ("tokens", "mutated_inp_runtime_indices")):
        return {}
    outputs = enumerate(getattr(metadata, "output_info", None) or ())
    return {i: output.base_idx for i, output in outputs if output.output_type.name == "is_input"}


def _is_left_or_written(given: Any) -> bool:
    """Whether a graph only reads this input, or writes its data itself for all to see."""
    if not given.mutates_data and not given.mutates_metadata:
        return True
    is_in_graph = given.mutation_type.name == "MUTATED_IN_GRAPH"
    return is_in_graph and not given.mutates_metadata and not given.mutations_hidden_from_autograd


@dataclass(frozen=True)
class StepLayout:
    """What a training graph's forward returns, and what becomes of it, where that is nothing unusual.

    updated: positions of the inputs whose new values come first and are copied into them
    results: how many outputs there are with those; the ones behind them are kept for the backward
    unsafe_views: of the results, those that the graph made as views of what nobody else sees
    constants: of the results, those that carry no gradient
    tangents: of the results, those whose gradients the backward takes
    """

    updated: tuple[int, ...]
    results: int
    unsafe_views: tuple[int, ...]
    constants: tuple[int, ...]
    tangents: tuple[int, ...]


def can_differentiate_scan() -> bool:
    """Whether torch's gradients of a scan are right: those of 2.11 are wrong (seen), 2.13's are tested."""
    return torch.__version__ >= "2.13"


def find_step_layout() -> StepLayout | None:
    """Of the forward that AOTAutograd compiles now; None where its wrapper does more. 2.11, 2.13."""
    from torch._guards import TracingContext

    metadata = getattr(TracingContext.try_get(), "fw_metadata", None)
    if metadata is None or any(getattr(metadata, name, True) for name in _UNUSUAL_IN_TRAINING):
        return None
    if any(getattr(metadata, name, 0) for name in _YOUNGER_THAN_2_11):
        return None
    updated = tuple(metadata.mutated_inp_runtime_indices)
    changed = tuple(i for i, given in enumerate(metadata.input_info) if _is_changed(given))
    if updated != changed or not all(_is_updated_data(metadata.input_info[i]) for i in updated):
        return None
    outputs = list(enumerate(metadata.output_info, len(updated)))
    return StepLayout(
        updated=updated,
        results=metadata.num_forward,
        unsafe_views=tuple(i for i, output in outputs if output.output_type.name == "unsafe_view_alias"),
        constants=(*range(len(updated)), *(i for i, output in outputs if not output.requires_grad)),
        tangents=tuple(i for i, output in outputs if _takes_gradient(output)),
    )


def _takes_gradient(output: Any) -> bool:
    """Whether the backward takes a gradient of this result; to 2.11 all that require one do."""
    return getattr(output, "requires_grad_for_backward", output.requires_grad)


_UNUSUAL_IN_TRAINING = (
    *("tokens", "num_backward_tokens", "is_rng_op_functionalized", "num_graphsafe_rng_states"),
    *("num_intermediate_bases", "num_outputs_aliased", "dynamic_outputs", "grad_enabled_mutation"),
    "num_symints_saved_for_bw",
    "indices_of_inputs_that_requires_grad_with_mutations_in_bw",
)
"""Of AOTAutograd's ViewAndMutationMeta: where one of them is not zero, empty or false, more is to be done."""

_YOUNGER_THAN_2_11 = ("num_opaque_objects_saved_for_bw", "num_tensors_saved_with_no_vc_check")
"""Of the same kind; a torch that does not have them does not have what they count."""


def changes_inputs() -> bool:
    """Whether the graph that AOTAutograd compiles now changes an input, or that is not known. 2.13."""
    from torch._guards import TracingContext

    metadata = getattr(TracingContext.try_get(), "fw_metadata", None)
    return metadata is None or any(map(_is_changed, metadata.input_info))


def _is_changed(given: Any) -> bool:
    return given.mutates_data or given.mutates_metadata


def _is_updated_data(given: Any) -> bool:
    """Whether all that is to do is to copy data into a tensor that autograd does not follow."""
    is_more = given.mutates_metadata or given.mutates_storage_metadata or given.requires_grad
    return given.mutation_type.name == "MUTATED_OUT_GRAPH" and not is_more


def are_transformed(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether torch.func is at work, or some of these are batches of gradients (is_grads_batched). 2.13."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    return functorch.peek_interpreter_stack() is not None or any(
        map(functorch.is_legacy_batchedtensor, tensors)
    )


def unsafe_view(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as one that autograd takes for no view of another. 2.11, 2.13."""
    return torch.ops.aten._unsafe_view(tensor, tensor.shape)


def release_saved_tensors(context: Any) -> None:
    """Let an autograd function forget what it saved, unless its graph is kept (retain_graph). 2.13."""
    getattr(context, "maybe_clear_saved_tensors", lambda: None)()


@dataclass(frozen=True)
class DynamoCode:
    """What Dynamo made of a function in one situation: `code` runs when `guards` hold."""

    code: types.CodeType
    guards: Any


def find_dynamo_code(function: types.FunctionType, of_compilation: str) -> DynamoCode | None:
    """What that compilation made of `function`, if Dynamo still has it. 2.13."""
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list as cache_entries

    for entry in cache_entries(function.__code__):
        if str(entry.compile_id) == of_compilation:
            return DynamoCode(entry.code, entry.guard_manager.root)
    return None


def forget_code(function: types.FunctionType) -> None:
    """Have Dynamo drop all it made of `function`: it compiles again at the next call. 2.13."""
    from torch._C._dynamo.eval_frame import reset_code

    reset_code(function.__code__)


class CannotReduceGuards(Exception):
    """Guards of a kind that cannot be checked apart from the others."""


def reduce_guards(
    guards: Any, names: Mapping[str, Any], settled: Container[int], roots: Container[str]
) -> tuple[Any, set[int]]:
    """Dynamo's guards without those that hold as long as some objects are unchanged.

    names: what the guards see: L, the local variables, of which those of `args` and `kwargs` are left out,
        and G, the global ones
    settled: ids of objects known to be unchanged: functions, modules, dictionaries, tensors
    roots: sources at which settled objects stand and stay
    Returns the remaining guards, whose `check` takes L, and the ids of the settled tensors met.
    Raises CannotReduceGuards. 2.13.
    """
    walk = _GuardWalk(names, settled, roots)
    walk.visit(guards, is_settled=False)  # the root's own guards, of modes, are always kept
    reduced = guards.clone_manager(lambda node: node.get_source() in walk.kept)
    if reduced is None or not reduced.check(names["L"]):
        raise CannotReduceGuards("the guards of Dynamo do not hold by themselves")
    return reduced, walk.tensors


class _GuardWalk:
    """Goes through a tree of guards; `kept` are the sources of those that must still be checked."""

    def __init__(self, names: Mapping[str, Any], settled: Container[int], roots: Container[str]) -> None:
        self._names, self._settled, self._roots = names, settled, roots
        self.kept: set[str] = set()
        self.tensors: set[int] = set()

    def visit(self, node: Any, *, is_settled: bool) -> bool:
        """Whether the node must be kept, for itself or for one below it."""
        if node.get_source() in ("L['args']", "L['kwargs']"):
            return False
        needed = [self.visit(below, is_settled=same) for below, same in self._below(node, is_settled)]
        if is_settled and not any(needed):
            return False
        self._refuse_relations(node)
        self.kept.add(node.get_source())
        return True

    def _below(self, node: Any, is_settled: bool) -> Iterator[tuple[Any, bool]]:
        """The nodes below, each with whether it is always the same constant or settled object."""
        for pair in getattr(node, "get_key_value_managers", dict)().values():
            for below in filter(None, pair):
                yield below, is_settled and self._is_settled(below)
        for accessor, below in zip(node.get_accessors(), node.get_child_managers(), strict=True):
            leads_to_same = is_settled and _is_followed(accessor, below)
            is_root = below.get_source() in self._roots
            yield below, (is_root or leads_to_same) and self._is_settled(below)

    def _is_settled(self, node: Any) -> bool:
        try:
            value = eval(node.get_source(), {}, dict(self._names))
        except Exception:  # a source that is no Python expression
            return False
        if isinstance(value, torch.Tensor) and id(value) in self._settled:
            self.tensors.add(id(value))
        return _is_constant(value) or id(value) in self._settled

    def _refuse_relations(self, node: Any) -> None:
        """A relation is one object at both of its ends and would be asked half a question."""
        from torch._C._dynamo.guards import RelationalGuard

        if any(isinstance(guard, RelationalGuard) for guard in node.get_leaf_guards()):
            raise CannotReduceGuards(f"{node.get_source()} is compared with other objects")


def _is_followed(accessor: Any, below: Any) -> bool:
    """Whether a settled object leads to the same one each time: its dictionary, an item, a method's self."""
    kind = type(accessor).__name__
    is_method = kind == "GetAttrGuardAccessor" and below.get_source().endswith(".__self__")
    return is_method or kind in _FOLLOWED


_FOLLOWED = ("GetGenericDictGuardAccessor", "DictGetItemGuardAccessor", "TupleGetItemGuardAccessor")


def _is_constant(value: object) -> bool:
    """Whether nothing in this object can change."""
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is None or type(value) in (bool, int, float, str)


def first_line(text: str) -> str:
    """What a message of torch says, without its many lines of advice."""
    return text.strip().splitlines()[0] if text.strip() else "no reason given"


def _traced(stack: Sequence[traceback.FrameSummary] | None) -> str:
    return "".join(traceback.format_list(list(stack or ())))


def _reason(text: str) -> str:
    """The kind of a graph break and its explanation, of a message that goes on with hints and links."""
    found = re.search(r"^ *Explanation: *(\S.*)$", text, re.MULTILINE)
    return f"{first_line(text)}: {found[1]}" if found else first_line(text)
