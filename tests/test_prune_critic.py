# SPDX-License-Identifier: Apache-2.0
"""PruneCritic keeps the action and what it is computed from, and the report says what went."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.evaluate import evaluate
from relay_passes.prune_critic import PruneCritic
from relay_passes.report import census, run_passes

RNG = np.random.default_rng(0)
W_ACTOR, W_CRITIC, LOG_STD = (RNG.standard_normal(shape).astype(np.float32) for shape in ((4, 2), (4, 1), (1, 2)))
ROWS = RNG.standard_normal((16, 4)).astype(np.float32)


@I.ir_module
class ActorCritic:
    @R.function
    def main(obs: R.Tensor((1, 4), "float32"), noise: R.Tensor((1, 2), "float32")) -> R.Tuple(
        R.Tensor((1, 2), "float32"), R.Tensor((1, 1), "float32"), R.Tensor((1, 2), "float32")
    ):
        with R.dataflow():
            shared = R.nn.relu(obs)
            action = R.matmul(shared, R.const(W_ACTOR))
            value = R.matmul(shared, R.const(W_CRITIC))
            std = R.exp(R.const(LOG_STD))
            sample = R.add(action, R.multiply(noise, std))
            gv = (action, value, sample)
            R.output(gv)
        return gv


@I.ir_module
class Actor:
    @R.function
    def main(obs: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            shared = R.nn.relu(obs)
            action = R.matmul(shared, R.const(W_ACTOR))
            R.output(action)
        return action


def test_only_the_action_and_its_inputs_stay():
    after = PruneCritic(0)(ActorCritic)
    tvm.ir.assert_structural_equal(after, Actor)
    relax.analysis.well_formed(after)
    assert after.get_global_var("main").ty == after["main"].ty


def test_the_kept_output_is_unchanged_whichever_it_is():
    noise = np.zeros((16, 2), np.float32)
    before = evaluate(ActorCritic, ROWS, noise)
    for index, rows in enumerate(before):
        module = PruneCritic(index)(ActorCritic)
        inputs = [ROWS, noise][: len(module["main"].params)]
        np.testing.assert_array_equal(evaluate(module, *inputs), rows)


def test_a_single_output_is_left_as_it_is():
    tvm.ir.assert_structural_equal(PruneCritic(0)(Actor), Actor)


def test_the_callers_module_is_left_as_it_is():
    text = ActorCritic.script()
    PruneCritic(0)(ActorCritic)
    assert ActorCritic.script() == text


def test_an_output_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"no output 3 to keep; main has 3 outputs, from 0 on"):
        PruneCritic(3)(ActorCritic)


def test_the_report_names_what_went_and_its_bytes():
    module, (change,) = run_passes(ActorCritic, [PruneCritic(0)])
    tvm.ir.assert_structural_equal(module, Actor)
    assert change.pass_name == "PruneCritic"
    assert change.saved_operators == 4
    assert change.saved_bytes == W_CRITIC.nbytes + LOG_STD.nbytes
    assert str(change) == "removed 2 outputs, input noise, 1 matmul, 1 exp, 1 multiply, 1 add"


def test_the_report_says_when_nothing_was_done():
    _, (change,) = run_passes(Actor, [PruneCritic(0)])
    assert (str(change), change.saved_bytes) == ("nothing to do", 0)


def test_a_constant_used_twice_is_counted_once():
    weight = relax.const(np.eye(4, dtype=np.float32))
    obs = relax.Var("obs", relax.TensorType((1, 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [obs]):
        with builder.dataflow():
            gv = builder.emit_output(relax.op.matmul(relax.op.matmul(obs, weight), weight))
        builder.emit_func_output(gv)
    counted = census(builder.get())
    assert counted.parameter_bytes == 64
    assert counted.operators == {"matmul": 2}
