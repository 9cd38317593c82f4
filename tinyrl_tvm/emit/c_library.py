# SPDX-License-Identifier: Apache-2.0
"""Print a program as C99 and assembly: header, shell with the parameters, portable kernels, the target's own kernels, and
calls of CMSIS-NN where layers were offloaded.

The texts are the templates beside this file; what is computed here depends on the policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyrl_tvm.cmsis_nn import Elementwise, FullyConnected, Offloaded, Softmax, SoftmaxInt8, since
from tinyrl_tvm.emit import lower
from tinyrl_tvm.emit.assembly import function_text
from tinyrl_tvm.emit.program import ALIGNMENT, ITEM_BYTES, Program, Step

if TYPE_CHECKING:
    from schedules import Parameter, PlacedKernel

C_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "int64": "int64_t", "float32": "float"}
_NUMBERS_PER_LINE = 16


def print_library(program: Program) -> dict[str, bytes]:
    """Path inside the library -> text, for the code of `program`."""
    steps, workspace_bytes = program.plan
    kernels = [_kernel(step, step.placed, program) for step in steps if not isinstance(step.placed, Offloaded)]
    offloaded = [_offloaded(i, s, s.placed) for i, s in enumerate(steps) if isinstance(s.placed, Offloaded)]
    context = {
        "name": program.name,
        "guard": f"TVMGEN_{program.name.upper()}",
        "pedigree": comment(program.pedigree),
        "alignment": ALIGNMENT,
        "workspace_bytes": workspace_bytes,
        "parameter_bytes": program.parameter_bytes,
        "target": program.target.name,
        "precision": program.precision,
        "target_guard": program.guard,
        "tensors": _tensors(program),
        "names": program.names,
        "arguments": _arguments(program, [tensor["c_name"] for tensor in _tensors(program)]),
        # in the shell a name of the model's could hide a parameter array or a function
        "shell_names": _shell_names(program),
        "shell_arguments": _arguments(program, _shell_names(program)),
        "kernels": kernels,
        **_of_cmsis_nn(offloaded),
        "uses_lookup": any("tinyrl_lookup" in kernel["definition"] for kernel in kernels),
        "uses": [name for name in lower.IN_C if any(f"{name}(" in kernel["definition"] for kernel in kernels)],
        "uses_dots": any("tinyrl_dots" in kernel["definition"] for kernel in kernels),
        "parameters": [
            text
            for index, step in enumerate(steps)
            if not isinstance(step.placed, Offloaded)
            for text in _parameters(index, step.placed.parameters)
        ],
        "copies": _copies(program) if program.gathers else [],
        "calls": [_call(index, step, program) for index, step in enumerate(steps)],
    }
    source = f"codegen/host/src/{program.name}"
    files = {
        f"codegen/host/include/tvmgen_{program.name}.h": "policy.h.jinja",
        f"codegen/host/src/tvmgen_{program.name}_kernels.h": "kernels.h.jinja",
        f"{source}_lib0.c": "policy.c.jinja",
        f"{source}_lib1.c": "kernels.c.jinja",
    }
    if program.guard:
        files[f"{source}_lib2.S"] = "kernels.S.jinja"
    if offloaded:
        files[f"{source}_lib3.c"] = "cmsis_nn.c.jinja"
    return {path: _render(template, context | _file_names(path)) for path, template in files.items()}


def print_layer(layer: FullyConnected, name: str, function: str) -> bytes:
    """The C of one layer as `function`, which `tvmgen_<name>_kernels.h` declares, as a library has it."""
    context = {
        "name": name,
        "file_name": f"{name}.c",
        "pedigree": "Written by tinyrl-tvm, to be measured.",
        "guard": f"TVMGEN_{name.upper()}",
        "alignment": ALIGNMENT,
        **_of_cmsis_nn([_offloaded(0, Step(function, layer, (None,), None), layer)]),
    }
    return _render("cmsis_nn.c.jinja", context)


def comment(text: str) -> str:
    """Text from a model, safe inside a C comment: on one line, printable ASCII, never closing it."""
    printable = re.sub(r"[^\x20-\x7e]", "?", text)
    return printable.replace("*/", "* /").replace("/*", "/ *").replace("??/", "? ?/").rstrip("\\")


def _file_names(path: str) -> dict[str, str]:
    name = path.rsplit("/", 1)[-1]
    return {"file_name": name, "header_name": name}


def _render(template: str, context: Mapping[str, Any]) -> bytes:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tinyrl_tvm.emit"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
        autoescape=False,  # noqa: S701 - C, not HTML; names are C identifiers and comments go through `comment`
    )
    return environment.get_template(template).render(context).encode("ascii")


def _tensors(program: Program) -> list[dict[str, Any]]:
    specs = [*((spec, "float32") for spec in program.inputs), (program.action, program.action.dtype)]
    return [
        {
            "c_name": c_name,
            "length": spec.length,
            "ctype": C_TYPES[dtype],
            "bytes": spec.length * ITEM_BYTES[dtype],
        }
        for (spec, dtype), c_name in zip(specs, program.names, strict=True)
    ]


def _shell_names(program: Program) -> list[str]:
    return [*(f"in_{index}" for index in range(len(program.inputs))), "out"]


def _arguments(program: Program, names: list[str]) -> str:
    *inputs, action = _tensors(program)
    parts = [f"const float {name}[{tensor['length']}]" for name, tensor in zip(names, inputs, strict=False)]
    return ", ".join([*parts, f"{action['ctype']} {names[-1]}[{action['length']}]"])


def _copies(program: Program) -> list[dict[str, Any]]:
    copies, offset = [], program.gathered_at
    for spec, name in zip(program.inputs, _shell_names(program), strict=False):
        copies.append({"name": name, "offset": offset, "bytes": 4 * spec.length})
        offset += 4 * spec.length
    return copies


def _kernel(step: Step, placed: PlacedKernel, program: Program) -> dict[str, str]:
    prototype = _prototype(step, "void")
    # beside assembly the C is a twin for every other core; where it is all there is, it is what the rules were made for
    family = "portable" if program.target.guard else placed.family
    definition = _definition(lower.c_source(placed.module(family, step.function)), step.function, prototype)
    kernel = {"summary": placed.summary, "prototype": prototype, "definition": definition, "assembly": ""}
    if program.guard:
        listing, _ = program.machine_code[step.function]
        kernel["assembly"] = function_text(listing, step.function)
    return kernel


def _prototype(step: Step, answer: str) -> str:
    *inputs, (out, out_dtype, _) = step.placed.arguments
    sources, parameters = inputs[: step.placed.sources], inputs[step.placed.sources :]
    parts = [f"const {C_TYPES[dtype]} *{name}" for name, dtype, _ in sources]
    parts += [f"const TINYRL_FLASH {C_TYPES[dtype]} *{name}" for name, dtype, _ in parameters]
    return f"{answer} {step.function}({', '.join(parts)}, {C_TYPES[out_dtype]} *{out})"


def _definition(source: str, function: str, prototype: str) -> str:
    """The function's body as TVM's C target prints it, under our prototype: TVM's takes no const."""
    start = source.rindex(f" {function}(")
    body = source[source.index("{", start) :]
    return f"{prototype} {body.strip()}\n"


def _of_cmsis_nn(offloaded: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template of CMSIS-NN's layers asks about."""
    functions = [layer["function"] for layer in offloaded]
    return {
        "offloaded": offloaded,
        "cmsis_nn_since": since(functions),
        "rounds_twice": any(function != "arm_fully_connected_s16" for function in functions),
        "has_sums": any(layer["sums"] for layer in offloaded),
    }


def _offloaded(index: int, step: Step, offloaded: Offloaded) -> dict[str, Any]:
    said = {"index": index, "summary": offloaded.summary, "function": offloaded.function}
    if isinstance(offloaded, Softmax):
        starts = np.cumsum(offloaded.runs) - offloaded.runs
        columns = [offloaded.runs, starts, offloaded.multiplier, offloaded.shift]
        of_int8 = isinstance(offloaded, SoftmaxInt8)
        if isinstance(offloaded, SoftmaxInt8):
            columns.append(offloaded.least_difference)
        calls = [[int(value) for value in call] for call in zip(*columns, strict=True)]
        return {
            **said,
            "has_status": not of_int8,
            "prototype": _prototype(step, "void" if of_int8 else "int32_t"),
            "parameters": _parameters(index, offloaded.parameters),
            "softmax": calls,
            "codes": offloaded.codes,
            "sums": False,
            "n_out": offloaded.n,
        }
    if isinstance(offloaded, Elementwise):
        between, behind = offloaded.numbers
        return {
            **said,
            "softmax": None,
            "has_status": True,
            "between": ", ".join(map(str, between)),
            "behind": ", ".join(map(str, behind)),
            "prototype": _prototype(step, "int32_t"),
            "parameters": _parameters(index, offloaded.parameters),
            "sums": False,
            "codes": offloaded.kernel.dtype,
            "table": offloaded.table is not None,
            "n_out": offloaded.kernel.n,
        }
    layer = offloaded
    n_out, n_in = layer.weight.shape
    return {
        **said,
        "softmax": None,
        "has_status": True,
        "between": None,
        "codes": layer.codes,
        "prototype": _prototype(step, "int32_t"),
        "parameters": _parameters(index, layer.parameters),
        "sums": layer.codes == "int8",
        "per_channel": layer.per_channel,
        "multiplier": int(layer.multiplier[0]),
        "shift": int(layer.shift[0]),
        "output_offset": layer.output_offset,
        "low": layer.low,
        "high": layer.high,
        "table": layer.table is not None,
        "n_in": n_in,
        "n_out": n_out,
    }


def _parameters(index: int, parameters: Sequence[Parameter]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{parameter.name}_{index}",
            "ctype": C_TYPES[str(parameter.values.dtype)],
            "length": parameter.values.size,
            "text": array_text(parameter.values),
        }
        for parameter in parameters
    ]


def array_text(values: np.ndarray) -> str:
    """The numbers of an array as the inside of a C initialiser; a float reads back as the same float."""
    numbers = [_number(value) for value in values.ravel()]
    lines = (numbers[i : i + _NUMBERS_PER_LINE] for i in range(0, len(numbers), _NUMBERS_PER_LINE))
    return ",\n".join("    " + ", ".join(line) for line in lines)


def _number(value: Any) -> str:
    if isinstance(value, np.floating):
        text = f"{float(value):.9g}"  # nine digits name a float32
        return f"{text}f" if re.search(r"[.e]", text) else f"{text}.0f"
    if value == -(2**31):
        return "(-2147483647 - 1)"
    return str(int(value))


def _call(index: int, step: Step, program: Program) -> dict[str, Any]:
    """The call, and whether it can fail."""
    *inputs, action = _shell_names(program)
    *_, (_, result_dtype, _) = step.placed.arguments
    sources = [
        inputs[0] if offset is None else _at(offset, dtype, const=True)
        for offset, (_, dtype, _) in zip(step.sources, step.placed.arguments, strict=False)
    ]
    result = action if step.result is None else _at(step.result, result_dtype, const=False)
    if isinstance(step.placed, Offloaded):
        can_fail = not isinstance(step.placed, SoftmaxInt8)  # which returns no status
        return {"text": f"{step.function}({', '.join([*sources, result])})", "can_fail": can_fail}
    arrays = [f"{p.name}_{index} + {p.origin}" if p.origin else f"{p.name}_{index}" for p in step.placed.parameters]
    return {"text": f"{step.function}({', '.join([*sources, *arrays, result])})", "can_fail": False}


def _at(offset: int, dtype: str, const: bool) -> str:
    place = f"scratch + {offset}" if offset else "scratch"
    if dtype == "int8":
        return place
    return f"({'const ' if const else ''}{C_TYPES[dtype]} *)(void *)({place})"
