"""ONNX Runtime and OpenVINO on ONNX's own LSTM operator: the best that they have for the recurrence."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from wolong_fx.bench.job import Contender, ContenderMissing
from wolong_fx.testing.models import GateLSTM

OPSET, IR = 17, 10
RESULTS = ("out_T1BH", "h_1BH", "c_1BH")


def make_onnx_runtime(model: GateLSTM, x_TBI: Tensor) -> Contender:
    """All of torch's threads, inputs and outputs bound once."""
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # After a call its threads spin, waiting for the next: on processors that the next contender needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(serialised_lstm(model, x_TBI), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x_TBI", x_TBI.numpy())
    for name in RESULTS:
        binding.bind_output(name)

    def results() -> list[Tensor]:
        session.run_with_iobinding(binding)
        return _in_torchs_shapes([torch.from_numpy(value) for value in binding.copy_outputs_to_cpu()])

    return Contender(lambda: session.run_with_iobinding(binding), results)


def make_openvino(model: GateLSTM, x_TBI: Tensor) -> Contender:
    """All of torch's threads, float32, tuned for the latency of one call."""
    core = _library("openvino").Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(serialised_lstm(model, x_TBI)), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = [x_TBI.numpy()]

    def call() -> Mapping[Any, Any]:
        return request.infer(inputs, share_inputs=True, share_outputs=True)

    def results() -> list[Tensor]:
        found = call()
        return _in_torchs_shapes([torch.tensor(found[compiled.output(name)]) for name in RESULTS])

    return Contender(call, results)


def serialised_lstm(model: GateLSTM, x_TBI: Tensor) -> bytes:
    """An ONNX model of one LSTM node with the model's weights, for inputs of this shape."""
    onnx = _library("onnx")
    helper, steps, batch, hidden = import_module("onnx.helper"), *x_TBI.shape[:2], model.hidden
    shapes = ((steps, 1, batch, hidden), (1, batch, hidden), (1, batch, hidden))
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x_TBI", "W", "R", "B"], RESULTS, hidden_size=hidden)],
        "lstm",
        [helper.make_tensor_value_info("x_TBI", onnx.TensorProto.FLOAT, list(x_TBI.shape))],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in zip(RESULTS, shapes, strict=True)
        ],
        [import_module("onnx.numpy_helper").from_array(w, name) for name, w in _weights(model).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return made.SerializeToString()


def _weights(model: GateLSTM) -> dict[str, Any]:
    """As ONNX has them: gates in the order input, output, forget, cell; rows are outputs; two biases."""
    order = (0, 3, 1, 2)
    W, U = (torch.cat([gates[i].detach().T for i in order])[None] for gates in (model.W, model.U))
    b = torch.cat([model.b[i].detach() for i in order])
    values = {"W": W, "R": U, "B": torch.cat([b, torch.zeros_like(b)])[None]}
    return {name: value.contiguous().numpy() for name, value in values.items()}


def _in_torchs_shapes(found: list[Tensor]) -> list[Tensor]:
    out_T1BH, h_1BH, c_1BH = found
    return [out_T1BH[:, 0], h_1BH[0], c_1BH[0]]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ContenderMissing(f"{error}; pip install 'wolong-fx[bench]'") from error
