# SPDX-License-Identifier: Apache-2.0
"""Graph passes for policies. TVM removed Relay in 0.20; its successor is Relax, and that is what these passes rewrite.

In the order of the pipeline: PruneCritic, CanonicalizeClip, SimplifyActionHead, FuseDense, AnchorMerges, QuantizeInt8 or
QuantizeInt16, FoldLut, LowerDense.
A model that is quantised already goes through JoinBias and LowerQdq in place of FuseDense and QuantizeInt8; RemoveQdq gives
its float policy. PartitionCmsisNN, after LowerDense, gives CMSIS-NN the layers it can compute.
`evaluate` gives a graph its meaning in numpy, `fixedpoint` is the law for int8 and int16, `oracle` judges by it.
"""

from relay_passes.anchor_merges import AnchorMerges
from relay_passes.canonicalize_clip import CanonicalizeClip
from relay_passes.fold_lut import FoldLut
from relay_passes.fuse_dense import FuseDense
from relay_passes.join_bias import JoinBias
from relay_passes.lower_dense import LowerDense
from relay_passes.lower_qdq import LowerQdq
from relay_passes.partition_cmsis_nn import PartitionCmsisNN
from relay_passes.prune_critic import PruneCritic
from relay_passes.quantize_int8 import QuantizeInt8
from relay_passes.quantize_int16 import QuantizeInt16
from relay_passes.remove_qdq import RemoveQdq
from relay_passes.simplify_action_head import SimplifyActionHead

__all__ = [
    "AnchorMerges",
    "CanonicalizeClip",
    "FoldLut",
    "FuseDense",
    "JoinBias",
    "LowerDense",
    "LowerQdq",
    "PartitionCmsisNN",
    "PruneCritic",
    "QuantizeInt8",
    "QuantizeInt16",
    "RemoveQdq",
    "SimplifyActionHead",
]
