"""The error catalogue: one class is one message template is one test.

A message says what is wrong, where, and what to do; facts are quoted with `!r`.
"""

from __future__ import annotations


class WolongError(Exception):
    """Base of every error that Wolong FX raises on purpose."""

    template = "{message}"

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        super().__init__(self.template.format(**facts))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.facts)


def _rebuild(kind: type[WolongError], facts: dict[str, object]) -> WolongError:
    """Errors cross process boundaries (spawned workers), where the default pickling loses keyword facts."""
    return kind(**facts)


class UnknownOption(WolongError):
    """An option that Wolong FX does not have."""

    template = "unknown option {name!r} in {where}; did you mean {nearest!r}? `wolong options` lists all."


class BadOptionValue(WolongError):
    """A known option with a value it cannot take."""

    template = "option {name!r} cannot be {value!r} in {where}: expected {expected}."


class InvalidProgram(WolongError):
    """A program that breaks a rule of the IR: always a defect of the step that made it."""

    template = "invalid program after {step!r}: rule {rule!r} broken by {culprit}."


class BrokenRule(WolongError):
    """A pass that left a graph which breaks a rule of the verifier: always a defect of the pass."""

    template = (
        "pass {step!r} broke a rule ({rule}): {culprit}. This is a defect of the pass; "
        "disable={step!r} runs without it."
    )


class UnknownPass(WolongError):
    """A pass or step that Wolong FX does not have."""

    template = "unknown pass {name!r} in {where}; did you mean {nearest!r}? `wolong passes` lists all."


class BadPassText(WolongError):
    """A pass written as text that cannot be read back."""

    template = "cannot read pass {text!r}: {because}; write it like {example!r}."


class RaceFound(WolongError):
    """Two virtual blocks of one epoch touch the same bytes, one of them writing."""

    template = "race in program {program!r}: {first} and {second} both touch {buffer!r} between barriers."


class ProgramFault(WolongError):
    """The reference machine met a step that no kernel may make: the program is at fault, not its inputs."""

    template = "program {program!r} {fault} at {where}."


class BadProgramText(WolongError):
    """Text that is no program."""

    template = "line {line}: expected {expected}, found {found!r}."


class UnsupportedOperator(WolongError):
    """An operator met by a lowering that does not know it; the graph falls back around it."""

    template = "cannot lower {operator!r}: {because}."


class CannotOptimize(WolongError):
    """optimize() was given something that is not a model."""

    template = "optimize() takes a module, a class of modules or a function, not {kind!r}: {target!r}."


class CannotCapture(WolongError):
    """A model that plain torch.fx cannot turn into one graph."""

    template = "torch.fx cannot capture {model!r}: {because}. optimize() goes through Dynamo and can."


class ModelNotFound(WolongError):
    """The command line names a model that cannot be had."""

    template = (
        "cannot make model {words!r}: {because}. Write it as package.module:Name, where Name is a module, or "
        "a class or function that makes one without arguments."
    )


class InputsNotTaken(WolongError):
    """A model that fails in eager mode on the inputs that it was to be compiled for."""

    template = (
        "the model fails on {inputs}, eagerly too: {because}. "
        "Give --input once for each argument of the model."
    )


class BadInputText(WolongError):
    """The command line describes an input in a way that cannot be read."""

    template = "cannot read input {text!r}: write its shape, and its dtype unless float32: {example}."


class RunsEagerly(WolongError):
    """A model of which nothing is compiled. Logged once a model, never raised."""

    template = (
        "{name} runs eagerly, nothing of it is compiled: {because}. "
        "TORCH_LOGS=graph_breaks shows where torch.compile gave up."
    )


class NoCompiler(WolongError):
    """No C++ compiler on this machine: models run eagerly until there is one."""

    template = (
        "no C++ compiler: looked for {looked_for} on PATH={path!r}. Install one (Debian and Ubuntu: "
        "`apt install g++`; Fedora: `dnf install gcc-c++`; conda: `conda install gxx`) or set CXX to one."
    )


class CompilerFailed(WolongError):
    """The compiler rejected a source that we made: a defect of the emitter or a compiler too old for it."""

    template = "the C++ compiler failed with status {status}: {command}\n{said}\nThe source is in {source!r}."


class CompilerTookTooLong(WolongError):
    """The compiler was stopped after its time limit."""

    template = "the C++ compiler was stopped after {seconds:g} s: {command}\nIts source is kept: {source!r}."


class TritonFailed(WolongError):
    """Triton, or the assembler behind it, gave no binary of a source that we made."""

    template = (
        "Triton made no kernel for {architecture}: {because}. {source!r} says how to see that again, with "
        "nothing but Triton: please report it."
    )


class NoGpuHere(WolongError):
    """A benchmark of GPUs where there is none."""

    template = "no GPU to measure on: {because}. On the CPU, to try the benchmark itself: --dry."


class NoTarget(WolongError):
    """Tensors live where the target that was asked for does not."""

    template = (
        "target={target!r} has no kernels for {device}; what lives there runs eagerly. target='auto' has."
    )


class NoGpu(WolongError):
    """Tensors live on a device for which nothing can be launched."""

    template = "no kernel can be launched on {device!r}: {because}; what lives there runs eagerly."


class DriverFailed(WolongError, RuntimeError):
    """A call of CUDA's driver that came back with an error."""

    template = "{call} failed on {device!r} with {status}: {because}."


class GridTooLarge(WolongError):
    """A cooperative launch that the device has no room for now: told once, then launched in stages."""

    template = (
        "kernel {kernel!r} wants {blocks} blocks at once and {device!r} has room for {resident}: it runs as "
        "{launches} launches instead of one. Another process, MIG or MPS may have the rest."
    )


class FirstCallInCapture(WolongError):
    """A graph was to be compiled while a CUDA graph is captured, when nothing may be loaded or uploaded."""

    template = (
        "kernel {kernel!r} cannot be made while a CUDA graph is captured; call the model once with these "
        "shapes before the capture."
    )


class IsaNotHere(WolongError):
    """An instruction set was asked for by name that this processor lacks."""

    template = "this processor has no {isa!r}: it lacks {missing!r}; use isa={best!r} or isa='auto'."


class KernelNotLoadable(WolongError):
    """The system would not load a kernel that was just built."""

    template = "cannot load kernel {kernel!r}: {because}. On a disk mounted noexec: set TMPDIR to another."


class WrongKernelAbi(WolongError):
    """A kernel speaks another version of the calling convention than this runtime."""

    template = "kernel {kernel!r} has ABI {found!r} but this runtime {expected!r}: a defect of its emitter."


class StaleKernelInput(WolongError):
    """A kernel was called with tensors that it was not compiled for."""

    template = "kernel {kernel!r} wants {expected} as {which}, not {found}; compile the model for that."


class KernelCheckFailed(WolongError, IndexError, RuntimeError):
    """A bounds check inside a kernel failed. Eager raises an IndexError or a RuntimeError: this is both."""

    template = "{message} (in kernel {kernel!r})"


class BadConfig(WolongError):
    """A training configuration with a value that makes no sense."""

    template = "config key {key!r} cannot be {value!r}: expected {expected}."


class NoText(WolongError):
    """A training run whose data path holds nothing to read."""

    template = "no text at data.path={path!r}: {because}; name a file, or a folder that holds text files."


class TextTooShort(WolongError):
    """A corpus too small for one window of each part."""

    template = (
        "{path!r} gives {size} bytes of {part} text, windows of data.length={length} need {needed}; "
        "take more text, a smaller data.length or another data.validation."
    )


class TornCheckpoint(WolongError):
    """A checkpoint file that is damaged or is none."""

    template = "checkpoint {path!r} cannot be read: {because}; resume from an older one with resume=FILE."


class CheckpointMismatch(WolongError):
    """A checkpoint of another model, text or seed than this run's."""

    template = (
        "checkpoint {path!r} was made with {key}={theirs!r}, this run has {ours!r}; "
        "set it back, or take another run_dir to start afresh."
    )


class CannotWrite(WolongError):
    """A full disk, a read-only directory or a size limit met while a run's files are written."""

    template = (
        "cannot write {path!r}: {because}; earlier files of the run are kept, resume when there is room."
    )


class RunDirectoryBusy(WolongError):
    """A run directory that another training run is writing to."""

    template = "run_dir={path!r} is in use by another run; wait for it, or take another run_dir."


class LossNotFinite(WolongError):
    """A training run that diverged."""

    template = (
        "the loss is {loss!r} at step {step}; lower optim.lr or trainer.clip. "
        "{path!r} is the last checkpoint."
    )


class NoDoubleBackward(WolongError, RuntimeError):
    """Gradients of gradients, which no compiled backward gives."""

    template = (
        "a compiled model has no gradients of gradients (create_graph=True was asked for, and then another "
        "backward); call wolong_fx.deoptimize(model) for this step."
    )


class NoBatchedBackward(WolongError, RuntimeError):
    """A backward inside a transform of torch.func, which a kernel cannot follow."""

    template = (
        "a compiled backward cannot run inside vmap, grad or is_grads_batched=True; call "
        "wolong_fx.deoptimize(model) for this step, or run one backward for each gradient."
    )


class UnexpectedGradient(WolongError, RuntimeError):
    """A gradient that is no plain dense tensor."""

    template = (
        "the gradient of a result of a compiled model is of type {found}, its backward takes plain dense "
        "tensors; detach the results that need no gradient, or give their gradients as dense tensors."
    )


class TransportNotHere(WolongError):
    """A transport that was asked for and cannot serve a group."""

    template = (
        "collectives cannot go over comm.transport={transport!r}: {because}; "
        "WOLONG_COMM_TRANSPORT=auto takes what can be, and says what."
    )
