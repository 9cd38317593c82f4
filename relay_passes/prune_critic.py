# SPDX-License-Identifier: Apache-2.0
"""Keep the action, drop the critic.

    main(obs) -> (action, value, log_prob)   becomes   main(obs) -> action

Why: Stable-Baselines3's documented export carries the value network and the log-probability, which training needs and a
robot does not: about half of a PPO file.  Whatever only they read (value layers, log_std, inputs) goes with them.
"""

from __future__ import annotations

import tvm
from tvm.ir import Tuple

from .dataflow import definitions, rewrite_main


@tvm.transform.module_pass(opt_level=0, name="PruneCritic")
class PruneCritic:
    """(action, value, log_prob) -> action; a module with a single output is left as it is."""

    def __init__(self, action_index: int = 0) -> None:
        self.action_index = action_index

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        main = module["main"]
        outputs = definitions(main).get(main.body.body)
        if not isinstance(outputs, Tuple):
            return module
        if not 0 <= self.action_index < len(outputs.fields):
            raise ValueError(
                f"no output {self.action_index} to keep; main has {len(outputs.fields)} outputs, from 0 on"
            )
        return rewrite_main(module, output=outputs.fields[self.action_index], drop_unused_inputs=True)
