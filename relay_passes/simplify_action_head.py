# SPDX-License-Identifier: Apache-2.0
"""Answer with the action, not with probabilities.

    logits -> log_softmax -> softmax -> argmax -> reshape  becomes  argmax(logits, axis=1)                 (1,)   int64
    split -> (softmax -> argmax) of each -> concat         becomes  concat(argmax(strided_slice(logits)))  (1, n) int64
    logits -> sigmoid -> round                             becomes  greater(logits, 0)                     (1, n) bool
    ... -> tanh -> reshape                                 becomes  ... -> tanh                            (1, n)
    logits -> log_softmax -> softmax -> reshape            becomes  softmax(logits, axis=1)                (1, n)

arg max f(x) = arg max x for every strictly increasing f applied alike to all entries of a row: softmax, log_softmax,
minus a number of the row (logsumexp), times a positive number, sigmoid, tanh, exp.  softmax(x + c) = softmax(x) = exp of
log_softmax(x).  Continuous heads keep all their arithmetic, and so do outputs that are logits.

Why: Stable-Baselines3 exports a normalised distribution to answer with its mode, and a core without an exponential
would spend most of its time there.

In float32 such an f may round two neighbours, or two saturated values (tanh of 10 and 11), to a tie, of which argmax
takes the first; the argmax of the logits takes the larger.  Likewise a sigmoid within 6e-8 of 0.5 rounds to 0 where the
logit is positive.  int8 codes on the way keep the order as well, but for ties; those of the logits themselves stay, for
sums of several scales can be compared by their codes only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Tuple, TupleGetItem, Var

from .dataflow import LAYOUT_OPS, constant, definitions, dtype_of, op_name, rewrite_main, shape_of, variables
from .evaluate import evaluate_expr
from .qdq import Pair, pairs

INCREASING = ("sigmoid", "tanh", "exp")


@tvm.transform.module_pass(opt_level=0, name="SimplifyActionHead")
class SimplifyActionHead:
    """argmax(softmax(logits)) becomes argmax(logits)."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        module = rewrite_main(module)
        head = _Head(definitions(module["main"]), pairs(module))
        output = module["main"].body.body
        outputs = head.values.get(output)
        if isinstance(outputs, Tuple):  # which one is the action is not known here: only rewrite what is plain
            decisions = [(field, head.decision(field)) for field in outputs.fields]
            return rewrite_main(module, output=Tuple([old if new is None else new for old, new in decisions]))
        decision = head.decision(output)
        return rewrite_main(module, output=head.action_row(output) if decision is None else decision)


class _Head:
    """The end of `main`, read backwards."""

    def __init__(self, values: Mapping[Var, relax.Expr], coded: Mapping[Var, Pair]) -> None:
        self.values, self.coded = values, coded
        self.codes_of = {pair.source: var for var, pair in coded.items()}

    def decision(self, output: Var) -> relax.Expr | None:
        """The canonical form of a discrete, multi-discrete or binary action; None for any other output."""
        output = self.without_layout(output, casts=True)
        name = op_name(self.values.get(output))
        if name == "argmax":
            return self.discrete(output)
        if name in ("concat", "stack"):
            decisions = self.multi_discrete(output)
            return self.probabilities(output) if decisions is None else decisions
        if name in ("nn.softmax", "exp"):
            return self.probabilities(output)
        return self.binary(output)

    def probabilities(self, output: Var) -> relax.Expr | None:
        """softmax(logits - a number of the row), or of each part of several spaces, as softmax(logits)."""
        value = self.values[output]
        several = op_name(value) == "concat"
        if several and len(_extents(output)) != 1:
            return None  # parts that do not follow one another
        fields = [self.without_layout(field) for field in value.args[0].fields] if several else [output]
        parts = [self.shifted_logits(field) for field in fields]
        if any(part is None for part in parts):
            return None
        rows = [relax.op.nn.softmax(self.part(part), axis=1) for part in parts]
        return relax.op.concat(rows, axis=1) if several else rows[0]

    def shifted_logits(self, scores: Var) -> relax.Expr | None:
        """The logits, (1, n), of which `scores` is the softmax; None where it is none of one whole row."""
        value: relax.Expr = self.values.get(scores)
        if op_name(value) == "exp" and op_name(self.values.get(value.args[0])) == "nn.log_softmax":
            value = self.values[value.args[0]]
        if op_name(value) not in ("nn.softmax", "nn.log_softmax") or not self.is_of_whole_row(value):
            return None
        logits = value.args[0]
        while isinstance(before := self.without_shift(logits), Var):
            logits = before
        n = _n_elements(logits)
        return logits if shape_of(logits) == (1, n) else relax.op.reshape(logits, (1, n))

    def without_shift(self, scores: Var) -> relax.Expr | None:
        """A row that differs from the row `scores` by one number in all its entries, or in its layout."""
        value: relax.Expr = self.values.get(scores)
        name = op_name(value)
        if name == "nn.log_softmax" and self.is_of_whole_row(value):
            return value.args[0]
        if name in LAYOUT_OPS:
            return value.args[0]
        if name in ("add", "subtract") and _n_elements(value.args[0]) == _n_elements(scores):
            return value.args[0] if isinstance(value.args[1], Var) and _is_one_number(value.args[1]) else None
        return None

    def is_of_whole_row(self, softmax: relax.Expr) -> bool:
        return shape_of(softmax)[softmax.attrs.axis] == _n_elements(softmax)

    def discrete(self, output: Var) -> relax.Expr | None:
        """argmax(increasing(logits)) as argmax(logits), where there is one row to take it of."""
        if _n_elements(output) != 1:
            return None
        return relax.op.argmax(self.row(self.values[output].args[0]), axis=1)

    def row(self, scores: Var) -> relax.Expr:
        """The logits behind `scores`, as (1, n)."""
        logits = self.logits(scores)
        n = _n_elements(logits)
        return logits if shape_of(logits) == (1, n) else relax.op.reshape(logits, (1, n))

    def multi_discrete(self, output: Var) -> relax.Expr | None:
        """Each part's argmax, side by side."""
        fields = [self.without_layout(field, casts=True) for field in self.values[output].args[0].fields]
        if any(op_name(self.values.get(field)) != "argmax" or _n_elements(field) != 1 for field in fields):
            return None
        parts = [self.part(self.row(self.values[field].args[0])) for field in fields]
        return relax.op.concat([relax.op.argmax(part, axis=1, keepdims=True) for part in parts], axis=1)

    def part(self, logits: relax.Expr) -> relax.Expr:
        """The same logits as a slice of one row, where they are that, however spelt."""
        cut = self.columns(self.without_codes(logits))
        if cut is None or (np.diff(cut[1]) != 1).any() or shape_of(cut[0])[:-1] != (1,):
            return logits
        row, columns = cut
        return relax.op.strided_slice(row, [1], [int(columns[0])], [int(columns[-1]) + 1])

    def columns(self, part: relax.Expr) -> tuple[Var, np.ndarray] | None:
        """The row `part` is cut from, and which columns of it it is; read off a row of column numbers."""
        value = self.values.get(part)
        call: relax.Expr = self.values.get(value.tuple_value) if isinstance(value, TupleGetItem) else value
        if op_name(call) not in ("split", "strided_slice", "take") or len(list(variables(call))) != 1:
            return None
        row = call.args[0]
        cut = evaluate_expr(call, {row: np.arange(_n_elements(row)).reshape(1, *shape_of(row))})
        return row, np.ravel(cut[value.index] if isinstance(value, TupleGetItem) else cut)

    def binary(self, output: Var) -> relax.Expr | None:
        """Which logits lie above the threshold."""
        value: relax.Expr = self.values.get(output)
        name = op_name(value)
        if name == "where" and _number(value.args[1]) == 1 and _number(value.args[2]) == 0:
            return self.binary(value.args[0])
        rounded = self.without_codes(value.args[0]) if name == "round" else output
        if name == "round" and op_name(self.values.get(rounded)) == "sigmoid":
            logits = self.without_codes(self.values[rounded].args[0])
            return relax.op.greater(logits, relax.const(0.0))  # round sends 0.5 to 0
        if name not in ("greater", "less"):
            return None
        above, below = value.args if name == "greater" else reversed(value.args)
        threshold, above = _number(below), self.without_codes(above)
        if threshold is None or dtype_of(above) != "float32" or above not in self.values:
            return None
        if op_name(self.values[above]) == "sigmoid" and 0 < threshold < 1:
            above, threshold = self.without_codes(self.values[above].args[0]), math.log(threshold / (1 - threshold))
        logits = above if threshold == 0 else relax.op.subtract(above, relax.const(threshold, "float32"))
        return relax.op.greater(logits, relax.const(0.0))

    def logits(self, scores: Var) -> Var:
        """The earliest row whose entries stand in the same order as those of the row `scores`."""
        while (value := self.values.get(scores)) is not None:
            name, args = op_name(value), value.args if isinstance(value, Call) else []
            if scores in self.coded:
                before = self.coded[scores].source
            elif name in ("nn.softmax", "nn.log_softmax"):
                before = args[0] if self.is_of_whole_row(value) else None
            elif name in INCREASING or (name in LAYOUT_OPS and _n_elements(args[0]) == _n_elements(scores)):
                before = args[0]
            elif name in ("add", "subtract") and _is_one_number(args[1]):
                before = args[0]  # plus a number of the row, such as its logsumexp
            elif name == "add" and _is_one_number(args[0]):
                before = args[1]
            elif name in ("multiply", "divide") and (_number(args[1]) or 0) > 0:
                before = args[0]
            elif name == "multiply" and (_number(args[0]) or 0) > 0:
                before = args[1]
            else:
                before = None
            if not isinstance(before, Var) or _n_elements(before) != _n_elements(scores):
                break
            scores = before
        return self.codes_of.get(scores, scores)

    def without_codes(self, var: Var) -> Var:
        """What `var` is the codes of."""
        while var in self.coded:
            var = self.coded[var].source
        return var

    def action_row(self, output: Var) -> Var:
        """A continuous action without its last reshapes, where a (1, n) row lies behind them."""
        row = self.without_layout(output)
        return row if len(shape_of(row)) == 2 and shape_of(row)[0] == 1 else output

    def without_layout(self, output: Var, casts: bool = False) -> Var:
        """Back through what only adds or drops axes of length one, or changes the type of a decision."""
        while (value := self.values.get(output)) is not None:
            name = op_name(value)
            if name == "astype":
                stays = dtype_of(value.args[0]) == dtype_of(output) or (casts and dtype_of(output) != "bool")
            else:
                stays = name in LAYOUT_OPS
            if not stays or not isinstance(value.args[0], Var) or _extents(value.args[0]) != _extents(output):
                break
            output = value.args[0]
        return output


def _extents(expr: relax.Expr) -> list[int]:
    """The shape without its axes of length one."""
    return [extent for extent in shape_of(expr) if extent != 1]


def _n_elements(expr: relax.Expr) -> int:
    return math.prod(shape_of(expr))


def _number(expr: relax.Expr) -> float | None:
    """The finite number a constant of one element (or of equal elements) holds."""
    array = constant(expr)
    if array is None or not array.size or not np.isfinite(array).all() or (array != array.flat[0]).any():
        return None
    return float(array.flat[0])


def _is_one_number(expr: relax.Expr) -> bool:
    """Whether all entries of a row get the same number; computed ones are taken to be finite."""
    return _n_elements(expr) == 1 if isinstance(expr, Var) else _number(expr) is not None
