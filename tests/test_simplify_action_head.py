# SPDX-License-Identifier: Apache-2.0
"""SimplifyActionHead: a discrete action is the argmax of the logits, a binary one their sign; numbers stay numbers."""

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.evaluate import evaluate
from relay_passes.simplify_action_head import SimplifyActionHead

ROWS = (np.random.default_rng(0).standard_normal((256, 6)) * 2).astype(np.float32)


def check(before: tvm.IRModule, expected: tvm.IRModule) -> None:
    text = before.script()
    after = SimplifyActionHead()(before)
    tvm.ir.assert_structural_equal(after, expected)
    relax.analysis.well_formed(after)
    want, got = evaluate(before, ROWS), evaluate(after, ROWS)
    if not isinstance(want, tuple):
        np.testing.assert_array_equal(np.reshape(got, np.shape(want)), want)
    tvm.ir.assert_structural_equal(SimplifyActionHead()(after), expected)
    assert before.script() == text


def unchanged(module: tvm.IRModule) -> None:
    check(module, module)


@I.ir_module
class Discrete:
    @R.function
    def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1,), "int64"):
        with R.dataflow():
            logits = R.nn.relu(x)
            action = R.argmax(logits, axis=1)
            R.output(action)
        return action


@I.ir_module
class Binary:
    @R.function
    def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 6), "bool"):
        with R.dataflow():
            logits = R.sin(x)
            action = R.greater(logits, R.const(0.0, "float32"))
            R.output(action)
        return action


def test_argmax_over_a_normalised_distribution_is_argmax_of_the_logits():
    @I.ir_module
    class CategoricalMode:  # as Stable-Baselines3's Categorical exports it
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1,), "int64"):
            with R.dataflow():
                logits = R.nn.relu(x)
                largest = R.max(logits, axis=[-1], keepdims=True)
                shifted = R.subtract(logits, largest)
                total = R.sum(R.exp(shifted), axis=[-1], keepdims=True)
                logsumexp = R.add(R.log(total), largest)
                log_probs = R.subtract(logits, logsumexp)
                probs = R.nn.softmax(log_probs, axis=-1)
                mode = R.argmax(probs, axis=1)
                action = R.reshape(mode, R.shape([1]))
                R.output(action)
            return action

    check(CategoricalMode, Discrete)


def test_argmax_ignores_whatever_keeps_the_order():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 1), "int32"):
            with R.dataflow():
                logits = R.nn.relu(x)
                a = R.divide(logits, R.const(2.0, "float32"))
                b = R.add(R.const(1.0, "float32"), a)
                c = R.multiply(R.const(0.25, "float32"), b)
                d = R.nn.log_softmax(c, axis=1)
                e = R.sigmoid(d)
                f = R.reshape(e, R.shape([6]))
                g = R.argmax(f, axis=0, keepdims=True)
                h = R.expand_dims(g, axis=[0])
                action = R.astype(h, "int32")
                R.output(action)
            return action

    check(Before, Discrete)


def test_a_factor_that_turns_the_order_round_stays():
    @I.ir_module
    class Negative:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1,), "int64"):
            with R.dataflow():
                a = R.multiply(x, R.const(-1.0, "float32"))
                action = R.argmax(a, axis=1)
                R.output(action)
            return action

    unchanged(Negative)


def test_a_shift_of_each_feature_stays():
    shift = np.arange(6, dtype=np.float32)

    @I.ir_module
    class Shifted:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1,), "int64"):
            with R.dataflow():
                a = R.add(x, R.const(shift))
                action = R.argmax(a, axis=1)
                R.output(action)
            return action

    unchanged(Shifted)


def test_relu_is_not_strictly_increasing_and_stays():
    unchanged(Discrete)


def test_argmax_over_the_batch_stays():
    @I.ir_module
    class OverBatch:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((6,), "int64"):
            with R.dataflow():
                a = R.nn.softmax(x, axis=1)
                action = R.argmax(a, axis=0)
                R.output(action)
            return action

    unchanged(OverBatch)


def test_a_softmax_over_part_of_the_scores_stays():
    @I.ir_module
    class Parts:  # each row of two normalised on its own: the order across rows changes
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1,), "int64"):
            with R.dataflow():
                a = R.reshape(x, R.shape([1, 3, 2]))
                b = R.nn.softmax(a, axis=2)
                c = R.reshape(b, R.shape([1, 6]))
                action = R.argmax(c, axis=1)
                R.output(action)
            return action

    tvm.ir.assert_structural_equal(SimplifyActionHead()(Parts)["main"].ret_ty, Parts["main"].ret_ty)
    after = SimplifyActionHead()(Parts)
    np.testing.assert_array_equal(evaluate(after, ROWS), evaluate(Parts, ROWS))
    assert "softmax" in after.script()


def test_a_softmax_that_another_output_reads_is_kept():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tuple(R.Tensor((1,), "int64"), R.Tensor((1, 6), "float32")):
            with R.dataflow():
                probs = R.nn.softmax(x, axis=1)
                action = R.argmax(probs, axis=1)
                gv = (action, probs)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tuple(R.Tensor((1,), "int64"), R.Tensor((1, 6), "float32")):
            with R.dataflow():
                action = R.argmax(x, axis=1)
                probs = R.nn.softmax(x, axis=1)
                gv = (action, probs)
                R.output(gv)
            return gv

    after = SimplifyActionHead()(Before)
    assert sorted(op_names(after)) == sorted(op_names(Expected))
    for got, want in zip(evaluate(after, ROWS), evaluate(Before, ROWS), strict=True):
        np.testing.assert_array_equal(got, want)


def op_names(module: tvm.IRModule) -> list[str]:
    values = [binding.value for binding in module["main"].body.blocks[0].bindings]
    return [value.op.name for value in values if isinstance(value, tvm.ir.Call)]


def test_probabilities_as_the_action_stay():
    @I.ir_module
    class Probabilities:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                action = R.nn.softmax(x, axis=1)
                R.output(action)
            return action

    unchanged(Probabilities)


@I.ir_module
class MultiDiscrete:
    @R.function
    def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 2), "int64"):
        with R.dataflow():
            logits = R.sin(x)
            first = R.strided_slice(logits, [1], [0], [4])
            a = R.argmax(first, axis=1, keepdims=True)
            second = R.strided_slice(logits, [1], [4], [6])
            b = R.argmax(second, axis=1, keepdims=True)
            action = R.concat((a, b), axis=1)
            R.output(action)
        return action


def test_a_multi_discrete_action_is_the_argmax_of_each_slice():
    @I.ir_module
    class Split:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 2), "int64"):
            with R.dataflow():
                logits = R.sin(x)
                parts = R.split(logits, [4], axis=1)
                first = parts[0]
                second = parts[1]
                p = R.nn.softmax(first, axis=-1)
                q = R.nn.softmax(second, axis=-1)
                a = R.argmax(p, axis=1)
                b = R.argmax(q, axis=1)
                c = R.expand_dims(a, axis=[1])
                d = R.expand_dims(b, axis=[1])
                e = R.concat((c, d), axis=1)
                action = R.reshape(e, R.shape([1, 2]))
                R.output(action)
            return action

    check(Split, MultiDiscrete)


def test_stacked_argmaxes_have_the_same_form():
    @I.ir_module
    class Stacked:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 2), "int64"):
            with R.dataflow():
                logits = R.sin(x)
                first = R.take(logits, R.const(np.arange(4)), axis=1)
                second = R.strided_slice(logits, [1], [-2], [6])
                a = R.argmax(first, axis=1)
                b = R.argmax(second, axis=1)
                action = R.stack((a, b), axis=1)
                R.output(action)
            return action

    check(Stacked, MultiDiscrete)


def test_parts_that_are_no_plain_slices_stay():
    @I.ir_module
    class Interleaved:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 2), "int64"):
            with R.dataflow():
                even = R.strided_slice(x, [1], [0], [6], [2])
                odd = R.strided_slice(x, [1], [1], [6], [2])
                a = R.argmax(even, axis=1, keepdims=True)
                b = R.argmax(odd, axis=1, keepdims=True)
                action = R.concat((a, b), axis=1)
                R.output(action)
            return action

    unchanged(Interleaved)


def test_joined_numbers_are_no_multi_discrete_action():
    @I.ir_module
    class Joined:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 7), "float32"):
            with R.dataflow():
                a = R.argmax(x, axis=1, keepdims=True)
                b = R.astype(a, "float32")
                action = R.concat((b, x), axis=1)
                R.output(action)
            return action

    unchanged(Joined)


def test_a_rounded_probability_is_the_sign_of_the_logit():
    @I.ir_module
    class BernoulliMode:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                logits = R.sin(x)
                probs = R.sigmoid(logits)
                mode = R.round(probs)
                action = R.reshape(mode, R.shape([1, 6]))
                R.output(action)
            return action

    check(BernoulliMode, Binary)


def test_a_probability_above_a_half_is_the_sign_of_the_logit():
    @I.ir_module
    class Above:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 6), "int32"):
            with R.dataflow():
                logits = R.sin(x)
                probs = R.sigmoid(logits)
                mode = R.less(R.const(0.5, "float32"), probs)
                chosen = R.where(mode, R.const(1.0, "float32"), R.const(0.0, "float32"))
                action = R.astype(chosen, "int32")
                R.output(action)
            return action

    check(Above, Binary)


def test_another_threshold_is_taken_off_the_logits():
    @I.ir_module
    class Above:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 6), "bool"):
            with R.dataflow():
                logits = R.sin(x)
                action = R.greater(logits, R.const(0.25, "float32"))
                R.output(action)
            return action

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 6), "bool"):
            with R.dataflow():
                logits = R.sin(x)
                above = R.subtract(logits, R.const(0.25, "float32"))
                action = R.greater(above, R.const(0.0, "float32"))
                R.output(action)
            return action

    check(Above, Expected)


def test_rounded_numbers_that_are_no_probabilities_stay():
    @I.ir_module
    class Rounded:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                a = R.tanh(x)
                action = R.round(a)
                R.output(action)
            return action

    unchanged(Rounded)


def test_a_continuous_action_loses_its_reshapes_only():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((6,), "float32"):
            with R.dataflow():
                a = R.tanh(x)
                b = R.multiply(a, R.const(2.0, "float32"))
                c = R.clip(b, -1.5, 1.5)
                d = R.expand_dims(c, axis=[1])
                e = R.reshape(d, R.shape([1, 6]))
                action = R.squeeze(e, axis=[0])
                R.output(action)
            return action

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                a = R.tanh(x)
                b = R.multiply(a, R.const(2.0, "float32"))
                action = R.clip(b, -1.5, 1.5)
                R.output(action)
            return action

    check(Before, Expected)


def test_an_action_of_several_axes_keeps_them():
    @I.ir_module
    class Grid:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 2, 3), "float32"):
            with R.dataflow():
                a = R.tanh(x)
                action = R.reshape(a, R.shape([1, 2, 3]))
                R.output(action)
            return action

    unchanged(Grid)


def test_codes_on_the_way_to_an_argmax_go_but_those_of_the_logits_stay():
    """A quantised model has codes behind every operator."""

    @I.ir_module
    class Quantised:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1,), "int64"):
            with R.dataflow():
                logits = R.sin(x)
                codes = R.quantize(logits, R.const(0.01, "float32"), R.const(0, "int8"), out_dtype="int8", axis=1)
                values = R.dequantize(codes, R.const(0.01, "float32"), R.const(0, "int8"), axis=1)
                odds = R.nn.softmax(values, axis=1)
                coarse = R.quantize(odds, R.const(0.004, "float32"), R.const(-128, "int8"), out_dtype="int8", axis=1)
                chances = R.dequantize(coarse, R.const(0.004, "float32"), R.const(-128, "int8"), axis=1)
                action = R.argmax(chances, axis=1)
                R.output(action)
            return action

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1,), "int64"):
            with R.dataflow():
                logits = R.sin(x)
                codes = R.quantize(logits, R.const(0.01, "float32"), R.const(0, "int8"), out_dtype="int8", axis=1)
                values = R.dequantize(codes, R.const(0.01, "float32"), R.const(0, "int8"), axis=1)
                action = R.argmax(values, axis=1)
                R.output(action)
            return action

    # not `check`: the finer codes settle what the coarser leave a tie
    tvm.ir.assert_structural_equal(SimplifyActionHead()(Quantised), Expected)
    unchanged(Expected)
