"""The convolutions of torch.nn.functional as Triton kernels, forward and backward, called exactly as torch's."""

from tritonconv.explain import Explanation, explain
from tritonconv.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d

__all__ = [
    "Explanation",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "explain",
]
__version__ = "0.1.0"
