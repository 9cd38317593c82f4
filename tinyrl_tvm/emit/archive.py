# SPDX-License-Identifier: Apache-2.0
"""Put a printed program, its graph, its parameters and its test vectors into a model library."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import zipfile
from typing import Any

import numpy as np

import tinyrl_tvm
from tinyrl_tvm.emit.c_library import print_library
from tinyrl_tvm.emit.program import ITEM_BYTES, Program
from tinyrl_tvm.library import FORMAT_VERSION, ModelLibrary, export_seconds


def archive(program: Program, graph: str, vectors: dict[str, np.ndarray], facts: dict[str, Any]) -> ModelLibrary:
    """`vectors` are those of `ModelLibrary.vectors`; `facts` join the metadata that is ours: tolerance, sha256, ..."""
    files = print_library(program)
    files[f"src/{program.name}.relax"] = graph.encode()
    files[f"parameters/{program.name}.params"] = _parameters(program)
    files["test/vectors.npz"] = _npz(vectors)
    metadata = _metadata(program, facts | {"test_vectors": len(vectors["observations"])})
    files["metadata.json"] = json.dumps(metadata, indent=2).encode()
    return ModelLibrary(files)


def _parameters(program: Program) -> bytes:
    """TVM's own format: `tvm.runtime.load_param_dict` reads it."""
    import tvm

    steps, _ = program.plan
    arrays = {
        f"{step.function}.{parameter.name}": tvm.runtime.tensor(np.ascontiguousarray(parameter.values))
        for step in steps
        for parameter in step.placed.parameters
    }
    return bytes(tvm.runtime.save_param_dict(arrays))


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """`np.savez_compressed` with fixed times, so that the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as stream:
        for name, values in sorted(arrays.items()):
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            item = io.BytesIO()
            np.lib.format.write_array(item, np.ascontiguousarray(values), allow_pickle=False)
            stream.writestr(entry, item.getvalue())
    return buffer.getvalue()


def _metadata(program: Program, facts: dict[str, Any]) -> dict[str, Any]:
    steps, workspace_bytes = program.plan
    exported = datetime.datetime.fromtimestamp(export_seconds(), datetime.timezone.utc)
    *inputs, action = program.names
    inputs_io = {
        name: {"size": 4 * spec.length, "dtype": "float32"} for name, spec in zip(inputs, program.inputs, strict=True)
    }
    size = ITEM_BYTES[program.action.dtype] * program.action.length
    action_io = {action: {"size": size, "dtype": program.action.dtype}}
    device = 1  # kDLCPU
    module = {
        "model_name": program.name,
        "export_datetime": exported.strftime("%Y-%m-%d %H:%M:%SZ"),
        "target": [program.target.name],
        "executors": ["aot"],
        "style": "full-model",
        "external_dependencies": [],
        "memory": {
            "functions": {
                "operator_functions": [
                    {"function_name": step.function, "workspace": [{"device": device, "workspace_size_bytes": 0}]}
                    for step in steps
                ],
                "main": [
                    {
                        "device": device,
                        "workspace_size_bytes": workspace_bytes,
                        "constants_size_bytes": program.parameter_bytes,
                        "io_size_bytes": 4 * (program.n_observations + program.action.length),
                        "inputs": inputs_io,
                        "outputs": action_io,
                    }
                ],
            }
        },
        "tinyrl": {
            "generator": f"tinyrl-tvm {tinyrl_tvm.__version__}",
            "target": program.target.name,
            "precision": program.precision,
            "inputs": [
                {"name": spec.name, "c_name": c_name, "length": spec.length, "shape": list(spec.shape)}
                for spec, c_name in zip(program.inputs, inputs, strict=True)
            ],
            "action": {
                "name": program.action.name,
                "c_name": action,
                "length": program.action.length,
                "dtype": program.action.dtype,
            },
            "layers": [dataclasses.asdict(layer) for layer in program.layers],
            **({"cmsis_nn": list(program.cmsis_nn)} if program.cmsis_nn else {}),
            **facts,
        },
    }
    return {"version": FORMAT_VERSION, "modules": {program.name: module}}
