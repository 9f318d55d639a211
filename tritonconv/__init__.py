"""The convolutions of torch.nn.functional as Triton kernels, forward and backward, called exactly as torch's."""

import tritonconv.requirements  # noqa: F401 (before all that imports Triton)

# isort: split
from costmodel.version import __version__
from tritonconv import batching as batching
from tritonconv import nn
from tritonconv.causal import causal_conv1d, causal_conv1d_update
from tritonconv.causal.prefill import causal_conv1d_prefill
from tritonconv.columns import fold, unfold
from tritonconv.convert import convert, report, revert
from tritonconv.decompose import decompositions
from tritonconv.deform import deform_conv2d
from tritonconv.documented import complete as _complete
from tritonconv.explain import Explanation, explain
from tritonconv.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from tritonconv.fused import (
    conv1d_fused,
    conv2d_fused,
    conv3d_fused,
    conv_transpose1d_fused,
    conv_transpose2d_fused,
    conv_transpose3d_fused,
)
from tritonconv.invariant import batch_invariant
from tritonconv.normalize import Prologue, group_norm_prologue, rms_norm_prologue
from tritonconv.packed import forget_packed
from tritonconv.separable import depthwise_separable_conv2d
from tritonconv.use import use
from tritonconv.video import causal_conv3d

__all__ = [
    "Explanation",
    "Prologue",
    "__version__",
    "batch_invariant",
    "causal_conv1d",
    "causal_conv1d_prefill",
    "causal_conv1d_update",
    "causal_conv3d",
    "conv1d",
    "conv1d_fused",
    "conv2d",
    "conv2d_fused",
    "conv3d",
    "conv3d_fused",
    "conv_transpose1d",
    "conv_transpose1d_fused",
    "conv_transpose2d",
    "conv_transpose2d_fused",
    "conv_transpose3d",
    "conv_transpose3d_fused",
    "convert",
    "decompositions",
    "deform_conv2d",
    "depthwise_separable_conv2d",
    "explain",
    "fold",
    "forget_packed",
    "group_norm_prologue",
    "nn",
    "report",
    "revert",
    "rms_norm_prologue",
    "unfold",
    "use",
]

#: Public names whose docstrings are complete as they stand.
_WHOLE = (
    *("Explanation", "Prologue", "__version__", "batch_invariant", "convert", "decompositions", "deform_conv2d", "fold"),
    *("forget_packed", "group_norm_prologue", "nn", "rms_norm_prologue", "unfold", "use"),
)
_complete({name: globals()[name] for name in __all__ if name not in _WHOLE})
