# SPDX-License-Identifier: Apache-2.0
"""Read an exported policy: an .onnx file becomes a `Policy`.

    bytes -> ModelProto -> float32, batch 1 -> constants folded -> the action found -> operators checked -> Relax

The observation and the action are found by structure, for exporters name tensors as they like (`input`, `56`, `view`).
Of the graph outputs that depend on an input, these are set aside:

    a judgement     one float a sample, computed from another output: its log-probability, its Q-value
    logits          floats that an integer output is computed from: the arg-max of them is the action
    a hidden layer  all of another output is computed from it, through a dense layer
    an echo         an input, at most reshaped or rescaled

The action is what is left; of several, the one that is judged; else the one that is not a single float, for beside a
wider or an integer action a single float is the value. So a 1-wide PPO action and its value, both float (1, 1), are
told apart by the log-probability: it is computed from the action and never from the value. When all that does not
settle it, the user is asked for `--output`.

Every other output is imported too, so that PruneCritic can remove it and say what that saved.

Source: Stable-Baselines3, docs/guide/export.md for the exports, common/distributions.py for what comes from what.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from tinyrl_tvm.errors import TinyrlError, UnsupportedOp, unknown_name
from tinyrl_tvm.policy import DTYPES, Policy, TensorSpec, c_names

if TYPE_CHECKING:  # onnx takes a quarter of a second to load, TVM a whole one; `tinyrl-tvm --help` needs neither
    import onnx
    from tvm import IRModule

MAX_MODEL_BYTES = 256 * 1024 * 1024  # the file, and its external data; no microcontroller holds a tenth of it
MAX_FOLDED_BYTES = 16 * 1024 * 1024  # one folded constant; a stranger's graph could ask for any size
OPSETS = (9, 25)  # what TVM 0.27's importer and ONNX Runtime both read; torch writes 17 to 20
REEXPORT = "export it again with opset_version=18"  # the oldest that both of torch's exporters write themselves

# What an action may be computed with. Convolutions, recurrent layers and attention are missing.
SUPPORTED_OPS = frozenset(
    {"Gemm", "MatMul", "BatchNormalization", "LayerNormalization"}
    | {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sign", "Pow", "Sqrt", "Exp", "Log", "Reciprocal", "Erf"}
    | {"Sum", "Mean"}
    | {"Clip", "Min", "Max", "Floor", "Ceil", "Round"}
    | {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Mish", "HardSwish", "Softplus"}
    | {"Tanh", "Sigmoid", "HardSigmoid", "Softsign", "Softmax", "LogSoftmax"}
    | {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceLogSumExp", "ArgMax", "ArgMin"}
    | {"Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "IsNaN"}
    | {"Cast", "Constant", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand"}
    | {"Concat", "Split", "Slice", "Gather", "OneHot"}
)
SAMPLING_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)

_LAYERS = frozenset({"Gemm", "MatMul"})
# The same numbers in another form: followed backwards from an output, they lead to the layer that made it.
_POST_PROCESSING = frozenset(
    {"Cast", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Clip", "Min", "Max"}
    | {"Round", "Where", "Neg", "Add", "Sub", "Mul", "Div", "Tanh", "Sigmoid", "HardSigmoid", "Softsign"}
    | {"Softmax", "LogSoftmax"}
)


def load(path: Path, output: str | None = None) -> Policy:
    """Read the policy in `path`; `output` names the action where the graph does not show which output it is."""
    data = _read_bounded(path)
    model = _parse(data, path.name)
    notes = list(_read_external_data(model, path))
    model = _without_functions(model, path.name)
    _drop_empty_axes_flag(model)
    notes += _make_float32(model, path.name)
    notes += _make_batch_one(model)

    graph, refusal = _folded(model)
    unreadable = TinyrlError(f"ONNX Runtime cannot read '{path.name}': {refusal}; {REEXPORT}")
    try:
        action = output or _action_of(graph, path.name)
    except TinyrlError as err:
        if refusal and not isinstance(err, UnsupportedOp):
            raise unreadable from None  # shapes are unknown then, and so is what they would have settled
        raise
    if action not in graph.outputs:
        raise unknown_name("output", action, map(_one_line, graph.outputs))
    if refusal and len(graph.outputs) > 1:  # perhaps by an operator that only the critic has
        actor, refusal_of_actor = _folded(graph.only([action]))
        if not refusal_of_actor:
            notes.append(f"left out {_quoted(name for name in graph.outputs if name != action)}: {refusal}")
            graph, refusal = actor, ""
    inputs = tuple(_input_spec(graph.inputs[name], path.name) for name in graph.inputs_of(action))
    if not inputs:
        raise TinyrlError(f"output {_quoted([action])} of '{path.name}' depends on no input; try another --output")
    _check_operators(graph, graph.ancestors(action), path.name)
    if refusal:
        raise unreadable
    _check_weights(graph, action, path.name)

    module, outputs, left_out = _imported(graph, action, path.name)
    index = outputs.index(action)
    return Policy(
        module=module,
        inputs=inputs,
        action=_action_spec(module, index, action, path.name),
        action_index=index,
        source=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        notes=(*notes, *left_out),
    )


# ---- the file ----


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MODEL_BYTES + 1)
    except OSError as err:
        raise TinyrlError(f"cannot read '{path}': {err.strerror}; give the path of an .onnx file") from err
    if len(data) > MAX_MODEL_BYTES:
        raise TinyrlError(f"'{path.name}' is over {MAX_MODEL_BYTES // 2**20} MiB, too much for a microcontroller")
    return data


def _parse(data: bytes, source: str) -> onnx.ModelProto:
    import onnx

    try:
        # not onnx.load: it picks a parser by the file's ending, and opens external data wherever that points
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf's own type, which has no stubs; it says nothing a user could act on
        model = onnx.ModelProto()
    whole = model.graph.node and model.opset_import and all(isinstance(text, str) for text in _texts(model))
    if not whole and data[:1] == b"\x08":  # every exporter writes field 1, ir_version, first
        raise TinyrlError(f"'{source}' is an ONNX file cut short or damaged ({len(data):,} B); copy or export it again")
    if not whole:
        raise TinyrlError(f"'{source}' is {_kind_of_file(data)}; export the policy with torch.onnx.export")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise TinyrlError(f"'{source}' is of ONNX opset {opset}, {OPSETS[0]} to {OPSETS[1]} can be read; {REEXPORT}")
    if model.graph.sparse_initializer:
        raise TinyrlError(f"'{source}' stores sparse weights, which TVM cannot read; export dense ones")
    return model


def _kind_of_file(data: bytes) -> str:
    if not data:
        return "empty"
    if data.startswith(b"PK\x03\x04"):
        return "not an ONNX file but a zip archive, such as model.save() writes"
    if data.startswith(b"version https://git-lfs"):
        return "not an ONNX file but a Git LFS pointer to one, which `git lfs pull` replaces"
    return "not an ONNX file"


def _read_external_data(model: onnx.ModelProto, path: Path) -> Iterator[str]:
    """Bring weights kept in files beside the model into it. The names of those files come from a stranger."""
    import onnx

    files: dict[str, bytes] = {}
    room_bytes = MAX_MODEL_BYTES  # counted a tensor, for many tensors may claim the same bytes of a file
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _read_beside(path, location)
        content = files[location]
        try:
            start = int(entries.get("offset", "0"))
            stop = start + int(entries.get("length", str(len(content) - start)))
        except ValueError:
            start, stop = 0, -1
        if not 0 <= start <= stop <= len(content):
            raise TinyrlError(
                f"'{path.name}' keeps weight {_quoted([tensor.name])} in {_quoted([location])}, which is cut short or "
                f"damaged ({len(content):,} B); copy or export both files again"
            )
        room_bytes -= stop - start
        if room_bytes < 0:
            raise TinyrlError(
                f"the weights of '{path.name}' need over {MAX_MODEL_BYTES // 2**20} MiB, too much for a microcontroller"
            )
        tensor.raw_data = content[start:stop]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")
    for location, content in files.items():
        yield f"weights read from {_quoted([location])}, SHA-256 {hashlib.sha256(content).hexdigest()}"


def _read_beside(path: Path, location: str) -> bytes:
    said = f"'{path.name}' keeps weights in {_quoted([location])}"
    folder = path.parent.resolve()
    paths = PurePosixPath(location), PureWindowsPath(location)  # by the rules of both: a file travels
    inside = bool(location) and "\0" not in location and not any(one.anchor or ".." in one.parts for one in paths)
    try:
        target = (folder / location).resolve() if inside else folder
        if not inside or not target.is_relative_to(folder):
            raise TinyrlError(f"{said}, which is outside the model's own folder; export it again into one folder")
        with target.open("rb") as file:
            content = file.read(MAX_MODEL_BYTES + 1)
    except FileNotFoundError as err:
        raise TinyrlError(f"{said}, which is missing; copy that file beside the model") from err
    except (OSError, RuntimeError) as err:  # before Python 3.13 a loop of symbolic links is a RuntimeError
        raise TinyrlError(f"{said}, which cannot be read: {_one_line(str(err))}; export it again") from err
    if len(content) > MAX_MODEL_BYTES:
        raise TinyrlError(f"{said}, which is over {MAX_MODEL_BYTES // 2**20} MiB, too much for a microcontroller")
    return content


# ---- the graph before import ----


def _without_functions(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """Torch's dynamo exporter may leave parts of the graph in functions; TVM reads none."""
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as err:  # of several unrelated types
        raise TinyrlError(f"'{source}' is not a valid ONNX model: {_one_line(str(err))}; {REEXPORT}") from err


def _drop_empty_axes_flag(model: onnx.ModelProto) -> None:
    """Mend the export that Stable-Baselines3's documentation shows, as torch 2.9 and later write it.

    They write opset 18 and convert that down to the documented 17, but leave a flag of 18 on the ReduceLogSumExp of
    every discrete policy, which ONNX Runtime then refuses. 0 means what the operator did before it had the flag.
    """
    for graph in _graphs(model.graph):
        for node in graph.node:
            kept = [one for one in node.attribute if one.name != "noop_with_empty_axes" or one.i != 0]
            if len(kept) < len(node.attribute):
                del node.attribute[:]
                node.attribute.extend(kept)


def _make_float32(model: onnx.ModelProto, source: str) -> list[str]:
    """float64 and float16 weights and observations become float32, which is what the firmware computes in."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    kinds = onnx.TensorProto
    others = {kinds.DOUBLE: "float64", kinds.FLOAT16: "float16", kinds.BFLOAT16: "bfloat16"}
    found = set()
    largest = np.finfo(np.float32).max
    for tensor in _tensors(model):
        if tensor.data_type in others:
            found.add(tensor.data_type)
            try:
                values = numpy_helper.to_array(tensor).astype(np.float64)
            except Exception as err:
                raise TinyrlError(f"weight {_quoted([tensor.name])} of '{source}' is damaged; export it again") from err
            values = np.where(
                np.isinf(values), values, np.clip(values, -largest, largest)
            )  # a -1e300 mask stays finite
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    for graph in _graphs(model.graph):
        graph.ClearField("value_info")  # inferred again
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in others:
                found.add(value.type.tensor_type.elem_type)
                value.type.tensor_type.elem_type = kinds.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i in others:
                    attribute.i = kinds.FLOAT
    return [f"{' and '.join(sorted(others[kind] for kind in found))} computed as float32"] if found else []


def _make_batch_one(model: onnx.ModelProto) -> Iterator[str]:
    """A robot asks about one observation at a time: a dynamic first axis becomes 1."""
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].HasField("dim_value"):
            yield f"batch axis {_quoted([axes[0].dim_param or '?'])} of input {_quoted([value.name])} set to 1"
            axes[0].dim_value = 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")  # it may name the axis just fixed; inferred again


def _folded(model: onnx.ModelProto) -> tuple[_Graph, str]:
    """The model with its constants folded by ONNX Runtime; or the model as it is, and why ONNX Runtime refuses it.

    Only the basic level: it keeps to ONNX operators, the higher ones fuse into operators TVM does not know.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.add_session_config_entry(
            "optimization.constant_folding_max_output_size_in_bytes", str(MAX_FOLDED_BYTES)
        )
        options.intra_op_num_threads = 1  # nothing is run; a pool of threads would cost more than the folding
        options.log_severity_level = 4  # a refusal comes back as an exception; more would only litter stderr
        refusal = ""
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # or it prints each refusal to stdout, and tries again
            )
            model = onnx.load_model(options.optimized_model_filepath, load_external_data=False)
        except Exception as err:  # onnxruntime's exceptions share no base class
            refusal = _one_line(
                re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (.*failed:)?", "", str(err), flags=re.DOTALL)
            )
    with contextlib.suppress(Exception):  # a shape that cannot be inferred stays unknown
        model = onnx.shape_inference.infer_shapes(
            model, data_prop=True
        )  # ONNX Runtime writes down only what it changed
    return _Graph(model), refusal


@dataclass(frozen=True)
class _Graph:
    """A model seen from its outputs: what each tensor is computed from."""

    model: onnx.ModelProto

    @cached_property
    def inputs(self) -> dict[str, onnx.ValueInfoProto]:
        stored = {tensor.name for tensor in self.model.graph.initializer}  # which old exporters list as inputs too
        return {value.name: value for value in self.model.graph.input if value.name not in stored}

    @cached_property
    def outputs(self) -> dict[str, onnx.ValueInfoProto]:
        return {value.name: value for value in self.model.graph.output}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.model.graph.node for name in node.output if name}

    @cached_property
    def varying(self) -> frozenset[str]:
        """Tensors whose numbers depend on an input's numbers. A shape does not, once the batch is 1."""
        result = set(self.inputs)
        for node in self.model.graph.node:  # in topological order, as ONNX demands
            if node.op_type not in ("Shape", "Size") and not result.isdisjoint(_operands(node)):
                result.update(node.output)
        return frozenset(result)

    def ancestors(self, name: str, stop_at: frozenset[str] = frozenset()) -> frozenset[str]:
        """`name` and every tensor it is computed from, without looking behind `stop_at`."""
        seen, todo = {name}, [name]
        while todo:
            tensor = todo.pop()
            if tensor in self.producers and tensor not in stop_at:
                fresh = set(_operands(self.producers[tensor])) - seen
                seen |= fresh
                todo += fresh
        return frozenset(seen)

    def nodes(self, tensors: frozenset[str]) -> list[onnx.NodeProto]:
        """The nodes that compute `tensors`."""
        return [node for node in self.model.graph.node if not tensors.isdisjoint(node.output)]

    def inputs_of(self, name: str) -> list[str]:
        needed = self.ancestors(name)
        return [name for name in self.inputs if name in needed]

    def only(self, outputs: list[str]) -> onnx.ModelProto:
        """A copy of the model without what only other outputs need."""
        import onnx

        needed = frozenset[str]().union(*map(self.ancestors, outputs))
        whole = self.model.graph
        graph = onnx.helper.make_graph(
            self.nodes(needed),
            whole.name or "policy",
            [value for name, value in self.inputs.items() if name in needed],
            [value for name, value in self.outputs.items() if name in outputs],
            [tensor for tensor in whole.initializer if tensor.name in needed],
        )
        return onnx.helper.make_model(graph, ir_version=self.model.ir_version, opset_imports=self.model.opset_import)


# ---- the action ----


@dataclass(frozen=True)
class _Output:
    """A graph output, and how it is related to the others; the words are this file's docstring's."""

    graph: _Graph
    name: str

    @cached_property
    def ancestors(self) -> frozenset[str]:
        return self.graph.ancestors(self.name)

    @cached_property
    def head(self) -> frozenset[str]:
        """The output itself, and back through its post-processing to the tensor a layer made."""
        tensors = [self.name]
        while (node := self.graph.producers.get(tensors[-1])) is not None and node.op_type in _POST_PROCESSING:
            varying = [operand for operand in _operands(node) if operand in self.graph.varying]
            if len(varying) != 1:
                break
            tensors += varying
        return frozenset(tensors)

    @cached_property
    def is_float(self) -> bool:
        return self.graph.outputs[self.name].type.tensor_type.elem_type == 1  # TensorProto.FLOAT

    @cached_property
    def is_one_float(self) -> bool:
        tensor = self.graph.outputs[self.name].type.tensor_type
        n_elements = math.prod(axis.dim_value for axis in tensor.shape.dim) if tensor.HasField("shape") else 0
        return self.is_float and n_elements == 1

    @cached_property
    def echoes(self) -> bool:
        return not self.head.isdisjoint(self.graph.inputs)

    def is_computed_from(self, other: _Output) -> bool:
        """Not counting another form of the same numbers, such as a mean and its clipped copy."""
        return not self.ancestors.isdisjoint(other.head) and self.head.isdisjoint(other.head)

    def hides(self, other: _Output) -> bool:
        if not self.is_computed_from(other):
            return False
        between = self.graph.ancestors(self.name, stop_at=other.head) - other.head
        bypassed = not between.isdisjoint(self.graph.inputs)
        return not bypassed and any(node.op_type in _LAYERS for node in self.graph.nodes(between))

    def judges(self, other: _Output) -> bool:
        return self.is_one_float and self.is_computed_from(other) and not self.hides(other)

    def chooses_by(self, other: _Output) -> bool:
        return not self.is_float and other.is_float and self.is_computed_from(other)


def _action_of(graph: _Graph, source: str) -> str:
    varying = [_Output(graph, name) for name in graph.outputs if name in graph.varying]
    outputs = [one for one in varying if not one.echoes] or varying
    left = [
        one
        for one in outputs
        if not any(one.judges(other) or other.chooses_by(one) or other.hides(one) for other in outputs)
    ]
    judged = [one for one in left if any(other.judges(one) for other in outputs)]
    for candidates in (left, judged, [one for one in left if not one.is_one_float]):
        if len(candidates) == 1:
            return candidates[0].name
    candidates = left or outputs
    if not candidates:
        have = _quoted(graph.outputs)
        raise TinyrlError(f"no output of '{source}' depends on an input, but {have} exist; export the actor")
    # an LSTM that all of them need is what to hear about first
    made = [frozenset(name for node in graph.nodes(one.ancestors) for name in node.output) for one in candidates]
    _check_operators(graph, frozenset.intersection(*made), source)
    names = [one.name for one in candidates]
    raise TinyrlError(
        f"'{source}' has {len(names)} outputs that could be the action, {_quoted(names)}; "
        f"say which, as in --output {_quoted(names[:1])}"
    )


def _check_operators(graph: _Graph, needed: frozenset[str], source: str) -> None:
    for node in graph.nodes(needed):
        if node.op_type in SAMPLING_OPS:
            raise UnsupportedOp(
                f"'{source}' samples its action, with {node.op_type} at node {_named(node)}, so the same observation "
                "gives different answers; export it again with deterministic=True"
            )
    for node in graph.nodes(needed & graph.varying):  # whatever else is there is a constant by the time TVM compiles
        if node.domain not in ("", "ai.onnx") or node.op_type not in SUPPORTED_OPS:
            operator = ".".join(filter(None, (node.domain, node.op_type)))
            raise UnsupportedOp(
                f"{_one_line(operator)} at node {_named(node)} of '{source}' cannot be compiled; "
                f"supported: {', '.join(sorted(SUPPORTED_OPS))}"
            )


def _check_weights(graph: _Graph, action: str, source: str) -> None:
    import numpy as np
    from onnx import numpy_helper

    needed = graph.ancestors(action)
    for tensor in graph.model.graph.initializer:
        if tensor.name in needed and tensor.data_type == tensor.FLOAT and np.isnan(numpy_helper.to_array(tensor)).any():
            raise TinyrlError(
                f"weight {_quoted([tensor.name])} of '{source}' contains NaN, so the training diverged; "
                "export an earlier checkpoint"
            )


# ---- the import ----


def _imported(graph: _Graph, action: str, source: str) -> tuple[IRModule, list[str], list[str]]:
    """The Relax module, the outputs it has, and a note for each output that had to be left out."""
    from tvm.relax.frontend.onnx import onnx_frontend

    known = onnx_frontend._get_convert_map()
    inputs = graph.inputs_of(action)
    kept, notes = [], []
    for name in graph.outputs:
        unknown = [node for node in graph.nodes(graph.ancestors(name)) if node.op_type not in known]
        foreign = [other for other in graph.inputs_of(name) if other not in inputs]
        if name == action or not (unknown or foreign):
            kept.append(name)
        elif unknown:
            notes.append(
                f"left out {_quoted([name])}: TVM cannot import {unknown[0].op_type} at node {_named(unknown[0])}"
            )
        else:
            notes.append(f"left out {_quoted([name])}: it needs {_quoted(foreign)}, which the action does not")
    try:
        return _relax(graph.only(kept), inputs), kept, notes
    except Exception as err:  # whatever an operator's converter stumbles on
        others = [name for name in kept if name != action]
        if others:
            notes.append(f"left out {_quoted(others)}: TVM cannot import them: {_one_line(str(err))}")
    try:
        return _relax(graph.only([action]), inputs), [action], notes
    except Exception as err:
        raise TinyrlError(f"TVM cannot import '{source}': {_one_line(str(err))}; {REEXPORT}") from err


def _relax(model: onnx.ModelProto, inputs: list[str]) -> IRModule:
    from tvm.relax.frontend.onnx import from_onnx

    _rename_inputs(model.graph, inputs)
    with contextlib.redirect_stdout(io.StringIO()):  # TVM prints what it fails on, and stdout may be carrying --json
        return from_onnx(model, keep_params_in_input=False)


def _rename_inputs(graph: onnx.GraphProto, inputs: list[str]) -> None:
    """Relax's parameters are identifiers; a model's names may be anything."""
    used = {name for node in graph.node for name in (*node.input, *node.output)} | {
        one.name for one in graph.initializer
    }
    renamed = {}
    for name, c_name in zip(inputs, c_names(inputs), strict=True):
        while c_name in used - {name}:  # an inner tensor has it
            c_name += "_in"  # noqa: PLW2901
        used.add(c_name)
        renamed[name] = c_name
    for value in (*graph.input, *graph.output):  # an output may be an input handed through
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _input_spec(value: onnx.ValueInfoProto, source: str) -> TensorSpec:
    import onnx

    said = f"input {_quoted([value.name])} of '{source}'"
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not tensor.elem_type:
        raise TinyrlError(f"{said} has no shape; export it again with a dummy observation of shape (1, n_obs)")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if dtype not in DTYPES:
        raise TinyrlError(f"{said} is {dtype}, have: {', '.join(DTYPES)}; cast the observation before the export")
    sizes = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim]
    said += f" has shape ({', '.join(map(str, sizes))})"
    if not sizes or (len(sizes) == 1 and sizes != [1]):
        wanted = ", ".join(map(str, (1, *sizes))) if sizes else "1"
        raise TinyrlError(f"{said}, without a batch axis; export it again with a dummy observation of shape ({wanted})")
    if sizes[0] != 1:
        raise TinyrlError(f"{said}, a fixed batch of {sizes[0]}; export it again with a batch of 1 or a dynamic one")
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise TinyrlError(f"{said}; every axis but the first needs a fixed size: export it again without dynamic axes")
    return TensorSpec(value.name, tuple(int(size) for size in sizes[1:]), dtype)


def _action_spec(module: IRModule, index: int, name: str, source: str) -> TensorSpec:
    returned = module["main"].ret_ty
    tensor = returned.fields[index] if hasattr(returned, "fields") else returned
    dtype = str(tensor.dtype)
    if dtype not in DTYPES:
        raise TinyrlError(f"output {_quoted([name])} of '{source}' is {dtype}, have: {', '.join(DTYPES)}; {REEXPORT}")
    # a size computed from the observation has no value
    sizes = [getattr(size, "value", 0) for size in tensor.shape.values] if tensor.shape is not None else [0]
    if 0 in sizes:
        raise TinyrlError(f"output {_quoted([name])} of '{source}' has no fixed shape; {REEXPORT}")
    return TensorSpec(name, tuple(sizes[1:] if sizes[:1] == [1] else sizes), dtype)


# ---- walking a model, and quoting it ----


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and the branches and bodies inside it."""
    yield graph
    for node in graph.node:
        for inner in _inner_graphs(node):
            yield from _graphs(inner)


def _inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for one in node.attribute for graph in (*([one.g] if one.HasField("g") else []), *one.graphs)]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant of the model, wherever it is kept."""
    nodes = [node for function in model.functions for node in function.node]
    for graph in _graphs(model.graph):
        yield from graph.initializer
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _texts(model: onnx.ModelProto) -> Iterator[str]:
    """Every name in the model; protobuf gives bytes for one that is not UTF-8."""
    for graph in _graphs(model.graph):
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for value in (*graph.input, *graph.output):
            yield value.name
            yield from (axis.dim_param for axis in value.type.tensor_type.shape.dim)
    for tensor in _tensors(model):
        yield from (tensor.name, *(entry.value for entry in tensor.external_data))


def _operands(node: onnx.NodeProto) -> list[str]:
    """What a node reads, the outer tensors that its branches mention included."""
    names = [name for name in node.input if name]
    for graph in (graph for inner in _inner_graphs(node) for graph in _graphs(inner)):
        names += [name for child in graph.node for name in child.input if name]
        names += [value.name for value in graph.output]
    return names


def _quoted(names: Iterable[str]) -> str:
    """`'a', 'b'`: names out of a model, on one line and short whatever they contain."""
    return ", ".join(repr(name if len(name) <= 80 else f"{name[:77]}...") for name in names)


def _named(node: onnx.NodeProto) -> str:
    return _quoted([node.name or node.output[0]])  # nodes need no name, their outputs do


def _one_line(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip(" .")
    return text if len(text) <= 200 else f"{text[:197]}..."
