# SPDX-License-Identifier: Apache-2.0
"""int8 fully-connected .tflite files, built in memory, and what LiteRT's reference kernels answer at every layer.

    random_network(widths)  float32 weights and observations -> ranges, layer by layer -> [Dense, ...], int8 codes
    tflite_bytes(layers)    -> a .tflite: one input, one FULLY_CONNECTED a layer, one output
    litert_codes(layers)    -> the codes that enter the first layer, then those that leave each

Why not a converter: TensorFlow is a gigabyte, and would choose the scales for us. Here the file and the oracle are
given the same integers, so whatever differs is arithmetic.

Source: tflite/schema.fbs; the TFLite 8-bit quantisation specification.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import flatbuffers
import numpy as np
import tflite
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from relay_passes import fixedpoint

SCHEMA_VERSION = 3
PER_CHANNEL_VERSION = 12  # of FULLY_CONNECTED: the first whose int8 kernel reads one weight scale a channel


@dataclass(frozen=True)
class Tensor:
    """The place of int8 codes between two layers: real = scale * (code - zero_point)."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True)
class Dense:
    """One FULLY_CONNECTED: codes int8 (rows, k) -> int8 (rows, n); `weight_scale` float32 (1,) or (n,)."""

    weight: np.ndarray  # int8 (n, k)
    bias: np.ndarray  # int32 (n,), at scale source.scale * weight_scale
    weight_scale: np.ndarray
    source: Tensor
    target: Tensor
    relu: bool

    @property
    def real_multiplier(self) -> np.ndarray:
        """float64 (1,) or (n,): codes out per accumulator step. LiteRT too multiplies its float32 scales in float64."""
        return np.float64(self.source.scale) * self.weight_scale.astype(np.float64) / np.float64(self.target.scale)

    def accumulate(self, codes: np.ndarray) -> np.ndarray:
        bias = self.bias - self.source.zero_point * self.weight.sum(1, dtype=np.int32)
        return fixedpoint.dense_int8(codes, self.weight, bias)

    def oracle(self, codes: np.ndarray, rounding: str) -> np.ndarray:
        """The same layer by relay_passes/fixedpoint.py."""
        multiplier, shift = fixedpoint.quantize_multiplier(self.real_multiplier)
        value = fixedpoint.requantize(self.accumulate(codes), multiplier, shift, rounding)
        low = self.target.zero_point if self.relu else -128
        return fixedpoint.clamp_int8(value, self.target.zero_point, low)


def random_network(
    widths: Sequence[int], relu: bool, per_channel: bool, rows: int, seed: int
) -> tuple[list[Dense], np.ndarray]:
    """Seeded layers whose scales cover what seeded normal observations make of them, and those observations' codes.

    `relu` fuses one into every layer, the last too: here it is a kernel's flag, not a policy's shape.
    """
    random = np.random.default_rng(seed)
    values = random.normal(0, 1, (rows, widths[0])).astype(np.float32)
    source = _covering(values)
    codes = fixedpoint.quantize_observation(values, 1 / source.scale, source.zero_point)
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        weight = (random.normal(0, inputs**-0.5, (outputs, inputs)) * random.uniform(0.3, 2, (outputs, 1))).astype("f4")
        bias = random.normal(0, 0.3, outputs)
        values = values @ weight.T + bias.astype(np.float32)
        values = np.maximum(values, 0) if relu else values
        target = _covering(values)
        largest = np.abs(weight).max(axis=1) if per_channel else np.abs(weight).max(keepdims=True)[0]
        weight_scale = (largest / 127).astype(np.float32)
        layers.append(
            Dense(
                np.rint(weight / weight_scale[:, None]).astype(np.int8),
                np.rint(bias / (np.float64(source.scale) * weight_scale)).astype(np.int32),
                weight_scale,
                source,
                target,
                relu,
            )
        )
        source = target
    return layers, codes


def _covering(values: np.ndarray) -> Tensor:
    """The asymmetric scale over [min, max] and 0, as a calibration finds it."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = np.float32((high - low) / 255)
    return Tensor(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def litert_codes(layers: Sequence[Dense], codes: np.ndarray) -> list[np.ndarray]:
    """Every activation of one call: codes int8 (rows, k) in, then the int8 (rows, n) out of each layer."""
    interpreter = Interpreter(
        model_content=tflite_bytes(layers, rows=len(codes)),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,  # not XNNPACK, whose rounding is its own
        experimental_preserve_all_tensors=True,  # otherwise hidden activations share and overwrite one arena
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, codes)
    interpreter.invoke()
    return [interpreter.get_tensor(index) for index in range(len(layers) + 1)]


def tflite_bytes(layers: Sequence[Dense], rows: int) -> bytes:
    """Tensors 0..len(layers) are the activations in order; each layer's weight and bias follow them."""
    builder = flatbuffers.Builder(1 << 16)
    buffers = [_buffer(builder, b"")]  # the schema wants buffer 0 empty: it means "no data"
    activations = [layers[0].source, *(layer.target for layer in layers)]
    sizes = [layers[0].weight.shape[1], *(len(layer.weight) for layer in layers)]
    tensors = [
        _tensor(builder, f"activation{index}", (rows, size), tflite.TensorType.INT8, 0, [at.scale], at.zero_point)
        for index, (size, at) in enumerate(zip(sizes, activations, strict=True))
    ]
    operators = []
    for index, layer in enumerate(layers):
        weight_index, bias_index = len(tensors), len(tensors) + 1
        for name, values, kind, scale in (
            ("weight", layer.weight, tflite.TensorType.INT8, layer.weight_scale),
            ("bias", layer.bias, tflite.TensorType.INT32, layer.source.scale * layer.weight_scale),
        ):
            buffers.append(_buffer(builder, values.tobytes()))
            tensors.append(_tensor(builder, f"{name}{index}", values.shape, kind, len(buffers) - 1, scale, 0))
        operators.append(_fully_connected(builder, [index, weight_index, bias_index], index + 1, layer.relu))
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, tflite.BuiltinOperator.FULLY_CONNECTED)
    tflite.OperatorCodeAddBuiltinCode(builder, tflite.BuiltinOperator.FULLY_CONNECTED)
    tflite.OperatorCodeAddVersion(builder, PER_CHANNEL_VERSION)
    operator_codes = _offsets(builder, [tflite.OperatorCodeEnd(builder)])
    tensors_at, operators_at = _offsets(builder, tensors), _offsets(builder, operators)
    inputs_at, outputs_at = _numbers(builder, [0], np.int32), _numbers(builder, [len(layers)], np.int32)
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, tensors_at)
    tflite.SubGraphAddInputs(builder, inputs_at)
    tflite.SubGraphAddOutputs(builder, outputs_at)
    tflite.SubGraphAddOperators(builder, operators_at)
    subgraphs_at, buffers_at = _offsets(builder, [tflite.SubGraphEnd(builder)]), _offsets(builder, buffers)
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, SCHEMA_VERSION)
    tflite.ModelAddOperatorCodes(builder, operator_codes)
    tflite.ModelAddSubgraphs(builder, subgraphs_at)
    tflite.ModelAddBuffers(builder, buffers_at)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _tensor(builder, name, shape, kind, buffer, scale, zero_point) -> int:
    name_at, shape_at = builder.CreateString(name), _numbers(builder, shape, np.int32)
    scale_at = _numbers(builder, scale, np.float32)
    zero_point_at = _numbers(builder, np.full(len(scale), zero_point), np.int64)
    tflite.QuantizationParametersStart(builder)
    tflite.QuantizationParametersAddScale(builder, scale_at)
    tflite.QuantizationParametersAddZeroPoint(builder, zero_point_at)
    tflite.QuantizationParametersAddQuantizedDimension(builder, 0)  # of weight (n, k) and bias (n,): the channels
    quantization_at = tflite.QuantizationParametersEnd(builder)
    tflite.TensorStart(builder)
    tflite.TensorAddName(builder, name_at)
    tflite.TensorAddShape(builder, shape_at)
    tflite.TensorAddType(builder, kind)
    tflite.TensorAddBuffer(builder, buffer)
    tflite.TensorAddQuantization(builder, quantization_at)
    return tflite.TensorEnd(builder)


def _fully_connected(builder, inputs, output, relu) -> int:
    tflite.FullyConnectedOptionsStart(builder)
    activation = tflite.ActivationFunctionType.RELU if relu else tflite.ActivationFunctionType.NONE
    tflite.FullyConnectedOptionsAddFusedActivationFunction(builder, activation)
    options_at = tflite.FullyConnectedOptionsEnd(builder)
    inputs_at, outputs_at = _numbers(builder, inputs, np.int32), _numbers(builder, [output], np.int32)
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, 0)
    tflite.OperatorAddInputs(builder, inputs_at)
    tflite.OperatorAddOutputs(builder, outputs_at)
    tflite.OperatorAddBuiltinOptionsType(builder, tflite.BuiltinOptions.FullyConnectedOptions)
    tflite.OperatorAddBuiltinOptions(builder, options_at)
    return tflite.OperatorEnd(builder)


def _buffer(builder, data: bytes) -> int:
    if data:
        builder.Prep(16, len(data))  # the schema's force_align: LiteRT reads the weights in place
        data_at = builder.CreateByteVector(data)
    tflite.BufferStart(builder)
    if data:
        tflite.BufferAddData(builder, data_at)
    return tflite.BufferEnd(builder)


def _numbers(builder, values, dtype) -> int:
    return builder.CreateNumpyVector(np.asarray(values, dtype))


def _offsets(builder, offsets) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()
