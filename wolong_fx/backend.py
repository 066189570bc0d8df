"""The torch.compile backend "wolong": from a Dynamo graph through AOTAutograd to the pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from wolong_fx import _torch_compat, pipeline
from wolong_fx.capture.collector import collector_paused
from wolong_fx.capture.decompositions import decomposition_table
from wolong_fx.capture.expand_rnn import expand_rnn_calls, has_expansions, why_rnn_stays_whole
from wolong_fx.capture.inline_regions import inline_regions
from wolong_fx.capture.record import AOT_AND_COMPILE, CompiledGraph, Record
from wolong_fx.capture.refused_dtypes import find_refused_dtypes
from wolong_fx.capture.rnn import steps_rolled
from wolong_fx.capture.settings import settings_for_tracing
from wolong_fx.capture.watch import TrainingGraphs
from wolong_fx.ledger import Ledger
from wolong_fx.options import Options, is_enabled
from wolong_fx.passes.manager import PassManager
from wolong_fx.runtime import TensorSpec, is_watchable

logger = logging.getLogger("wolong_fx")

# What came in through torch.compile(backend="wolong"), which does not say for which model it calls.
torch_compile_record = Record()


class Backend:
    """A torch.compile backend with options and the record of one model: what `optimize` hands to Dynamo."""

    __name__ = "wolong"

    def __init__(self, options: Options, record: Record) -> None:
        self.options = options
        self.record = record

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_dynamo_graph(gm, example_inputs, self.options, self.record)


def wolong(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """torch.compile(model, backend="wolong", options={...}) calls this once a graph.

    Raises UnknownOption or BadOptionValue; torch itself does not check the options of a backend.
    """
    chosen = Options.of(where="torch.compile(options=...)", **(options or {}))
    return compile_dynamo_graph(gm, example_inputs, chosen, torch_compile_record)


def is_wolong(backend: object) -> bool:
    """True for the backend by name and for those that `optimize` makes."""
    return backend is wolong or isinstance(backend, Backend)


def compile_dynamo_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, record: Record
) -> Callable[..., Any]:
    """A callable with the inputs and outputs of `gm`, which runs eagerly where we cannot do better."""
    if not is_enabled():
        return gm.forward
    _torch_compat.guard_every_tensor()
    pipeline.check_options(options)
    try:
        inline_regions(gm)
    except Exception as error:
        because = _first_line(error)
        logger.warning("a graph runs eagerly: its marked regions could not be written out (%s)", because)
        record.capture.note("inline-regions", "graph", "fell-back", because)
        return gm.forward
    if because := why_rnn_stays_whole(gm):
        record.capture.note("capture", "graph", "fell-back", because)
        return gm.forward
    if has_symbolic_shapes(example_inputs):
        # Kernels are made for shapes. Dynamo, told so, keeps a graph for each set of them.
        return torch.compile(gm, backend=Backend(options, record), dynamic=False)
    if because := find_refused_dtypes(gm):  # torch shall say it, as it does in eager
        record.capture.note("capture", "graph", "fell-back", because)
        return gm.forward
    _torch_compat.forget_static_inputs(gm, example_inputs, is_weight)
    restore = expand_rnn_calls(gm, record.capture)
    try:
        with collector_paused():  # a recompilation is not under that of the first call
            rolled = _compile_rolled(gm, example_inputs, options, record)
            return rolled or _run_aot(gm, example_inputs, options, record)
    except Exception as error:
        restore()
        if _torch_compat.is_control_flow_of_dynamo(error):
            raise
        because = _first_line(error)
        logger.warning("a graph runs eagerly: AOTAutograd could not trace it (%s)", because)
        record.capture.note("aot-autograd", "graph", "fell-back", because)
        return gm.forward


def _compile_rolled(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, record: Record
) -> Callable[..., Any] | None:
    """The graph with its loops rolled, compiled; None where there are none or AOTAutograd cannot trace them.

    AOTAutograd then traces one step of a recurrence instead of all.
    """
    is_wrong = _is_differentiated(example_inputs) and not _torch_compat.can_differentiate_scan()
    compiled = len(record.graphs)
    try:
        # A loop that is not to be says nothing of itself.
        rolled = pipeline.roll_loops(gm, example_inputs, options, Ledger() if is_wrong else record.capture)
        has_sequences = has_expansions(gm) and "reroll" not in options.disable
        if rolled is None and not has_sequences:
            return None
        if is_wrong:
            record.capture.note("reroll", "graph", "kept", "this torch differentiates rolled loops wrongly")
            return None
        with steps_rolled():
            return _run_aot(rolled or gm, example_inputs, options, record)
    except Exception as error:
        if _torch_compat.is_control_flow_of_dynamo(error):
            raise
        del record.graphs[compiled:]
        because = _first_line(error)
        logger.warning("a graph is compiled with its loops unrolled: rolled, it fails (%s)", because)
        record.capture.note("reroll", "graph", "kept", f"rolled, it fails: {because}")
        return None


def _is_differentiated(inputs: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"


def has_symbolic_shapes(inputs: Sequence[Any]) -> bool:
    """True when Dynamo traced with sizes that may differ at the next call."""
    sizes = (s for x in inputs for s in (x.shape if isinstance(x, torch.Tensor) else (x,)))
    return any(isinstance(s, torch.SymInt) for s in sizes)


def is_weight(value: object, is_buffer: bool) -> bool:
    """True of a parameter or buffer of a module whose changes can be seen, so that what is made of it may be
    kept.
    """
    is_held = is_buffer or isinstance(value, torch.nn.Parameter)
    return is_held and isinstance(value, torch.Tensor) and is_watchable(value)


def _run_aot(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, record: Record
) -> Callable[..., Any]:
    training = TrainingGraphs()
    compiler = partial(_compile_aten_graph, options=options, record=record, training=training)
    joint_passes = PassManager(pipeline.joint_table(), options, record.capture, label="joint")
    with settings_for_tracing(), record.capture.timed(AOT_AND_COMPILE):
        compiled = _torch_compat.run_aot_autograd(
            gm,
            example_inputs,
            fw_compiler=partial(compiler, role="forward"),
            bw_compiler=partial(compiler, role="backward"),
            inference_compiler=partial(compiler, role="inference"),
            decompositions=dict(decomposition_table()),
            partition_fn=partial(partition_joint_graph, prepare=joint_passes),
            keep_inference_input_mutations=not torch.is_grad_enabled(),
        )
    if record.watch is None or training.forward is None:
        return compiled
    return record.watch.over_training(compiled, training)


def partition_joint_graph(
    joint: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    prepare: Callable[[fx.GraphModule], object],
    **kwargs: Any,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a training graph into forward and backward.

    Repeated operators go first, while both halves are one graph: afterwards a weight that both read would
    look like two. The minimum cut then saves about half as many tensors as the default partition (565 against
    1,043 on the 80-step LSTM), and each of them is an output that the forward kernel allocates. It takes a
    loop for one operator, whose results are all needed.

    prepare: what is done to the joint graph before, in place; see pipeline.joint_table
    """
    joint.graph = _torch_compat.remove_common_subexpressions(joint.graph)
    joint.recompile()
    prepare(joint)
    return _torch_compat.min_cut_partition(joint, inputs, **kwargs)


def _compile_aten_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    role: str,
    options: Options,
    record: Record,
    training: TrainingGraphs,
) -> Callable[[list[Any]], Any]:
    ledger = Ledger()
    # A step of training changes every weight: what is made of them is made in the kernel, each time.
    static = _torch_compat.find_static_inputs(gm) if role == "inference" else frozenset[int]()
    returned = _torch_compat.find_returned_inputs() if role == "inference" else {}
    _drop_results(gm, returned)
    if role == "forward":
        _torch_compat.donate_no_buffers()
    # Constants and a kernel's own tensors are real. What lies between the timed steps counts as our time too.
    with _torch_compat.outside_fake_mode(), ledger.timed("pipeline"):
        compiled = pipeline.compile_graph(
            gm, example_inputs, options, role=role, ledger=ledger, static=static
        )
    launches = getattr(compiled, "launches", 0)
    if record.watch is not None and role == "inference":
        compiled = record.watch.over(
            compiled,
            compilation=_torch_compat.compile_id(),
            written=_torch_compat.find_written_inputs(),
            returned=returned,
            launches=launches,
        )
    elif record.watch is not None and role == "forward":
        _note_forward(training, compiled, launches)
        compiled = record.watch.over_forward(training)
    elif role == "backward":
        _note_backward(training, compiled, example_inputs, launches)
    # On the object: AOTAutograd wraps a backward by functools.wraps, which copies no attribute of a class.
    compiled._boxed_call = True  # type: ignore[attr-defined]
    record.graphs.append(CompiledGraph(role, _torch_compat.current_frame(), launches, ledger))
    return compiled


def _drop_results(gm: fx.GraphModule, positions: Collection[int]) -> None:
    """Have the graph return nothing there; an update of an input that it returned would stay an operator."""
    if positions:
        output = gm.graph.output_node()
        results = enumerate(output.args[0])  # type: ignore[arg-type]
        output.args = (tuple(None if i in positions else result for i, result in results),)
        gm.recompile()


def _note_forward(training: TrainingGraphs, compiled: Callable[[list[Any]], Any], launches: int) -> None:
    training.forward, training.launches = compiled, training.launches + launches
    training.compilation, training.layout = _torch_compat.compile_id(), _torch_compat.find_step_layout()
    if training.layout is not None:
        training.written = training.layout.updated
    elif not _torch_compat.changes_inputs():
        training.written = ()


def _note_backward(
    training: TrainingGraphs,
    compiled: Callable[[list[Any]], Any],
    example_inputs: Sequence[Any],
    launches: int,
) -> None:
    training.launches += launches
    if training.layout is not None:
        gradients = example_inputs[len(example_inputs) - len(training.layout.tangents) :]
        training.backward, training.gradients = compiled, tuple(map(TensorSpec.of, gradients))


_torch_compat.trace_rnn_modules_for(is_wolong)
