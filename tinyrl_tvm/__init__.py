# SPDX-License-Identifier: Apache-2.0
"""Compile a trained reinforcement-learning policy to microcontroller firmware with Apache TVM.

The whole compile is on one page in `tinyrl_tvm.pipeline`. Importing this package loads neither TVM nor torch.
"""

__version__ = "0.1.0"
