# SPDX-License-Identifier: Apache-2.0
"""FuseDense: a linear stretch becomes one matmul and one add, computed in float64 and rounded once."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.evaluate import evaluate
from relay_passes.fuse_dense import FuseDense

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


W1, B1, W2, B2 = floats(6, 4), floats(6), floats(2, 6), floats(2)  # as torch stores them: (n_out, n_in)
MEAN, STD, SCALE, SHIFT = floats(4), np.abs(floats(4)) + np.float32(0.5), floats(6), floats(1, 6)


F32_3 = np.float32(3)


def f64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def f32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def check(before: tvm.IRModule, expected: tvm.IRModule, n_rows: int = 32) -> None:
    text = before.script()
    after = FuseDense()(before)
    tvm.ir.assert_structural_equal(after, expected)
    relax.analysis.well_formed(after)
    inputs = [floats(n_rows, *(int(n) for n in param.ty.shape.values[1:])) for param in before["main"].params]
    # In float64 only the rounding of the constants is left: 2^-24 relative each, a handful of terms.
    want, got = (evaluate(module, *inputs, dtype=np.float64) for module in (before, after))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    tvm.ir.assert_structural_equal(FuseDense()(after), expected)
    assert before.script() == text


def unchanged(module: tvm.IRModule) -> None:
    check(module, module)


def test_normalisation_transpose_scale_and_shift_are_one_dense():
    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                centred = R.subtract(obs, R.const(MEAN))
                unit = R.divide(centred, R.const(STD))
                weight = R.permute_dims(R.const(W1), axes=[1, 0])
                product = R.matmul(unit, weight)
                dense = R.add(product, R.const(B1))
                scaled = R.multiply(R.const(SCALE), dense)
                shifted = R.add(scaled, R.const(SHIFT))
                R.output(shifted)
            return shifted

    weight = f64(W1).T / f64(STD)[:, None] * f64(SCALE)
    bias = (-f64(MEAN) / f64(STD) @ f64(W1).T + f64(B1)) * f64(SCALE) + f64(SHIFT[0])

    after = FuseDense()(Before)
    matmul, add = (binding.value for binding in after["main"].body.blocks[0].bindings)
    # 1 / std * w is what is computed; it differs from w / std by float64 rounding, seldom seen in float32.
    np.testing.assert_allclose(matmul.args[1].value.numpy(), f32(weight), rtol=1.2e-7)
    np.testing.assert_allclose(add.args[1].value.numpy(), f32(bias), rtol=1.2e-7)
    folded_weight, folded_bias = matmul.args[1].value.numpy(), add.args[1].value.numpy()

    @I.ir_module
    class Expected:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                lv = R.matmul(obs, R.const(folded_weight))
                gv = R.add(lv, R.const(folded_bias))
                R.output(gv)
            return gv

    check(Before, Expected)


def test_a_plain_layer_keeps_its_weights_bit_for_bit():
    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                flat = R.reshape(obs, R.shape([1, 4]))
                w1 = R.permute_dims(R.const(W1), axes=[1, 0])
                a = R.matmul(flat, w1)
                b = R.add(a, R.const(B1))
                c = R.nn.relu(b)
                w2 = R.permute_dims(R.const(W2), axes=[1, 0])
                d = R.matmul(c, w2)
                e = R.add(d, R.const(B2))
                R.output(e)
            return e

    w1, w2 = W1.T.copy(), W2.T.copy()

    @I.ir_module
    class Expected:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(w1))
                b = R.add(a, R.const(B1))
                c = R.nn.relu(b)
                d = R.matmul(c, R.const(w2))
                e = R.add(d, R.const(B2))
                R.output(e)
            return e

    check(Before, Expected)


def test_gemm_with_alpha_and_beta_and_no_bias_has_the_same_form():
    w1, zeros = W1.T.copy(), np.zeros(6, np.float32)

    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(w1))
                b = R.tanh(a)
                alpha = R.multiply(b, R.const(0.5, "float32"))
                c = R.matmul(alpha, R.const(W1))
                beta = R.multiply(R.const(MEAN), R.const(2.0, "float32"))
                d = R.add(c, beta)
                R.output(d)
            return d

    half, double = f32(f64(W1) * 0.5), f32(f64(MEAN) * 2)

    @I.ir_module
    class Expected:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(w1))
                b = R.add(a, R.const(zeros))
                c = R.tanh(b)
                d = R.matmul(c, R.const(half))
                e = R.add(d, R.const(double))
                R.output(e)
            return e

    check(Before, Expected)


def test_constants_are_rounded_once():
    weight = np.abs(floats(4, 6)) + 1

    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                ratio = R.divide(R.const(weight), R.const(3.0, "float32"))
                a = R.matmul(obs, ratio)
                b = R.multiply(a, R.const(0.1, "float32"))
                R.output(b)
            return b

    once = f32(f64(weight) / 3 * np.float64(np.float32(0.1)))
    twice = f32(weight / F32_3 * np.float32(0.1))
    np.testing.assert_array_equal(values(FuseDense()(Before))[0].args[1].value.numpy(), once)
    assert (once != twice).any()


def test_two_layers_without_an_activation_become_one():
    w1, w2 = W1.T.copy(), W2.T.copy()

    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(w1))
                b = R.add(a, R.const(B1))
                c = R.matmul(b, R.const(w2))
                d = R.add(c, R.const(B2))
                R.output(d)
            return d

    weight, bias = f32(f64(w1) @ f64(w2)), f32(f64(B1) @ f64(w2) + f64(B2))

    @I.ir_module
    class Expected:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(weight))
                b = R.add(a, R.const(bias))
                R.output(b)
            return b

    check(Before, Expected)


def test_a_bottleneck_stays_two_layers():
    down, up = floats(16, 2), floats(2, 16)
    zeros_down, zeros_up = np.zeros(2, np.float32), np.zeros(16, np.float32)

    @I.ir_module
    class Bottleneck:
        @R.function
        def main(obs: R.Tensor((1, 16), "float32")) -> R.Tensor((1, 16), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(down))
                b = R.add(a, R.const(zeros_down))
                c = R.matmul(b, R.const(up))
                d = R.add(c, R.const(zeros_up))
                R.output(d)
            return d

    unchanged(Bottleneck)


def test_a_layer_read_twice_takes_in_nothing_of_its_readers():
    w1 = W1.T.copy()

    @I.ir_module
    class ReadTwice:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(w1))
                b = R.add(a, R.const(B1))
                c = R.multiply(b, R.const(2.0, "float32"))
                d = R.sigmoid(c)
                e = R.multiply(b, d)
                R.output(e)
            return e

    unchanged(ReadTwice)


def test_a_scale_read_by_two_layers_goes_into_both():
    w1, zeros = W1.T.copy(), np.zeros(6, np.float32)

    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                scaled = R.multiply(obs, R.const(2.0, "float32"))
                a = R.matmul(scaled, R.const(w1))
                b = R.matmul(scaled, R.const(w1))
                c = R.multiply(a, b)
                R.output(c)
            return c

    double = f32(2 * f64(w1))

    @I.ir_module
    class Expected:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                a = R.matmul(obs, R.const(double))
                b = R.add(a, R.const(zeros))
                c = R.matmul(obs, R.const(double))
                d = R.add(c, R.const(zeros))
                e = R.multiply(b, d)
                R.output(e)
            return e

    check(Before, Expected)


def test_a_stretch_without_a_matmul_is_multiply_then_add():
    low, high = np.array([-2, -1, 0, 1], np.float32), np.array([2, 3, 4, 1.5], np.float32)

    @I.ir_module
    class Unscale:  # Stable-Baselines3: low + 0.5 * (action + 1) * (high - low)
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.tanh(x)
                b = R.add(a, R.const(1.0, "float32"))
                c = R.multiply(R.const(0.5, "float32"), b)
                width = R.subtract(R.const(high), R.const(low))
                d = R.multiply(c, width)
                e = R.add(R.const(low), d)
                R.output(e)
            return e

    scale, shift = f32((f64(high) - f64(low)) / 2), f32((f64(high) + f64(low)) / 2)

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.tanh(x)
                b = R.multiply(a, R.const(scale))
                c = R.add(b, R.const(shift))
                R.output(c)
            return c

    check(Unscale, Expected)


def test_batch_normalisation_is_taken_in():
    w1, gamma, variance, zeros = W1.T.copy(), floats(4), STD, np.zeros(6, np.float32)

    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                norm = R.nn.batch_norm(
                    obs, R.const(gamma), R.const(zeros[:4]), R.const(MEAN), R.const(variance), axis=1, training=False
                )
                unit = norm[0]
                a = R.matmul(unit, R.const(w1))
                R.output(a)
            return a

    after = FuseDense()(Before)
    assert [op.op.name for op in values(after)] == ["relax.matmul", "relax.add"]
    rows = floats(32, 4)
    np.testing.assert_allclose(
        evaluate(after, rows, dtype=np.float64), evaluate(Before, rows, dtype=np.float64), rtol=1e-5, atol=1e-5
    )


def values(module: tvm.IRModule) -> list[relax.Expr]:
    return [binding.value for binding in module["main"].body.blocks[0].bindings]


def test_the_mean_over_quantiles_is_taken_in():
    weight, bias = floats(6, 20), floats(20)  # QR-DQN: 5 quantiles of 4 actions

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 6), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.matmul(x, R.const(weight))
                b = R.add(a, R.const(bias))
                c = R.reshape(b, R.shape([1, 5, 4]))
                d = R.mean(c, axis=[1])
                R.output(d)
            return d

    mean_weight = f32(f64(weight).reshape(6, 5, 4).mean(1))
    mean_bias = f32(f64(bias).reshape(5, 4).mean(0))
    after = FuseDense()(Before)
    matmul, add = values(after)
    np.testing.assert_allclose(matmul.args[1].value.numpy(), mean_weight, rtol=1.2e-7, atol=1e-8)
    np.testing.assert_allclose(add.args[1].value.numpy(), mean_bias, rtol=1.2e-7, atol=1e-8)


def test_stacked_frames_are_normalised_in_the_first_layer():
    weight, zeros = floats(12, 2), np.zeros(2, np.float32)

    @I.ir_module
    class Before:
        @R.function
        def main(frames: R.Tensor((1, 3, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                a = R.multiply(frames, R.const(STD))
                b = R.reshape(a, R.shape([1, 12]))
                c = R.matmul(b, R.const(weight))
                R.output(c)
            return c

    scaled = f32(np.tile(f64(STD), 3)[:, None] * f64(weight))

    @I.ir_module
    class Expected:
        @R.function
        def main(frames: R.Tensor((1, 3, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                a = R.reshape(frames, R.shape([1, 12]))
                b = R.matmul(a, R.const(scaled))
                c = R.add(b, R.const(zeros))
                R.output(c)
            return c

    check(Before, Expected)


def test_joined_observations_are_scaled_in_the_first_layer():
    weight = floats(6, 2)

    @I.ir_module
    class Before:
        @R.function
        def main(a: R.Tensor((1, 4), "float32"), b: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                centred = R.subtract(a, R.const(MEAN))
                joined = R.concat((centred, b), axis=1)
                c = R.matmul(joined, R.const(weight))
                R.output(c)
            return c

    bias = f32(-f64(MEAN) @ f64(weight[:4]))

    @I.ir_module
    class Expected:
        @R.function
        def main(a: R.Tensor((1, 4), "float32"), b: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                joined = R.concat((a, b), axis=1)
                c = R.matmul(joined, R.const(weight))
                d = R.add(c, R.const(bias))
                R.output(d)
            return d

    check(Before, Expected)


def test_a_selection_and_a_scale_are_no_layer():
    factors = floats(2)

    @I.ir_module
    class Selected:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                a = R.strided_slice(x, [1], [1], [3])
                b = R.multiply(a, R.const(factors))
                c = R.tanh(b)
                R.output(c)
            return c

    unchanged(Selected)


def test_joined_values_that_no_layer_reads_stay_as_they_are():
    @I.ir_module
    class Joined:
        @R.function
        def main(a: R.Tensor((1, 4), "float32"), b: R.Tensor((1, 2), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                scaled = R.multiply(a, R.const(MEAN))
                joined = R.concat((scaled, b), axis=1)
                c = R.tanh(joined)
                R.output(c)
            return c

    unchanged(Joined)


def test_products_and_sums_of_activations_stay():
    @I.ir_module
    class Activations:
        @R.function
        def main(x: R.Tensor((1, 4), "float32"), y: R.Tensor((4, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.matmul(x, y)
                b = R.add(a, x)
                c = R.divide(R.const(1.0, "float32"), b)
                d = R.multiply(c, x)
                R.output(d)
            return d

    tvm.ir.assert_structural_equal(FuseDense()(Activations), Activations)


def test_a_constant_that_widens_the_tensor_is_no_affine_map():
    @I.ir_module
    class Widen:
        @R.function
        def main(x: R.Tensor((1, 1), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                a = R.multiply(x, R.const(MEAN))
                R.output(a)
            return a

    unchanged(Widen)


@pytest.mark.parametrize("divisor", [np.float32(0), np.array([1, 0, 1, 1], np.float32)])
def test_a_division_by_zero_is_not_taken_in(divisor):
    w1 = W1.T.copy()

    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                a = R.divide(obs, R.const(divisor))
                b = R.matmul(a, R.const(w1))
                c = R.add(b, R.const(B1))
                R.output(c)
            return c

    tvm.ir.assert_structural_equal(FuseDense()(Before), Before)


def test_weights_that_would_overflow_float32_stay_apart():
    w1 = W1.T.copy()

    @I.ir_module
    class Before:
        @R.function
        def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 6), "float32"):
            with R.dataflow():
                a = R.multiply(obs, R.const(1e30, "float32"))
                b = R.matmul(a, R.const(w1))
                c = R.add(b, R.const(B1))
                d = R.multiply(c, R.const(1e30, "float32"))
                R.output(d)
            return d

    after = FuseDense()(Before)
    assert [op.op.name for op in values(after)] == ["relax.matmul", "relax.add", "relax.multiply"]


def test_integers_stay():
    @I.ir_module
    class Integers:
        @R.function
        def main(x: R.Tensor((1, 4), "int32")) -> R.Tensor((1, 4), "int32"):
            with R.dataflow():
                a = R.multiply(x, R.const(2, "int32"))
                b = R.add(a, R.const(1, "int32"))
                R.output(b)
            return b

    tvm.ir.assert_structural_equal(FuseDense()(Integers), Integers)


@pytest.mark.parametrize("seed", range(24))
def test_any_stretch_keeps_its_value(seed):
    """A random chain of affine operators, some values read twice, and an activation now and then."""
    rng = np.random.default_rng(seed)
    builder = relax.BlockBuilder()
    obs = relax.Var("obs", relax.TensorType((1, 5), "float32"))
    with builder.function("main", [obs]):
        with builder.dataflow():
            line, n = [obs], 5
            for _ in range(12):
                x = line[-1]
                vector = relax.const(rng.standard_normal((n,)).astype(np.float32))
                kind = rng.integers(10)
                if kind < 3:
                    n_out = int(rng.integers(1, 8))
                    weight = relax.const(rng.standard_normal((n, n_out)).astype(np.float32))
                    expr, n = relax.op.matmul(x, weight), n_out
                elif kind == 3:
                    expr = relax.op.tanh(x)
                elif kind == 4:
                    expr = relax.op.negative(x)
                elif kind == 5:
                    same = [y for y in line if y.ty == x.ty]
                    expr = relax.op.add(x, same[rng.integers(len(same))])
                elif kind == 6:
                    expr = relax.op.permute_dims(relax.op.reshape(x, (n, 1)), [1, 0])
                elif kind == 7:
                    expr = relax.op.subtract(vector, x)
                else:
                    expr = (relax.op.multiply, relax.op.add)[kind % 2](x, vector)
                line.append(builder.emit(expr))
            gv = builder.emit_output(relax.op.add(line[-1], relax.const(1.0)))
        builder.emit_func_output(gv)
    before = builder.get()
    after = FuseDense()(before)
    relax.analysis.well_formed(after)
    rows = rng.standard_normal((8, 5)).astype(np.float32)
    want, got = (evaluate(module, rows, dtype=np.float64) for module in (before, after))
    # Folded constants are off by 2^-24 of themselves; sums of a dozen terms may cancel a digit or two.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(want).max()))
    assert len(values(after)) <= len(values(before)) + len([op for op in values(before) if "matmul" in str(op.op)])
