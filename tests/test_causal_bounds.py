"""Where the causal kernels may reach: 32 or 64 bits, and indices that a caller may have wrong."""

import pytest
import torch
import triton.language as tl

from costmodel import causal as model
from tritonconv.causal import launch
from tritonconv.launch import device_model

LONG = 2**20 - 8


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "shape, strides, index",
    [
        ((2, 1024, 512), (2**19, 1, 1024), tl.int32),
        ((2**15, 2048, 2048), (2**22, 1, 2048), tl.int32),  # 2^37 elements, but an image is near: its base has 64 bits
        ((2, 1024, LONG), (0, 1, 2048), tl.int64),  # only the masked columns behind the row lie beyond 2^31
        ((1, 2**11, 2**20), (2**31, 1, 2**11), tl.int64),
        ((1, 2**11, 2**20), (2**31, 2**20, 1), tl.int64),
    ],
)
def test_which_offsets_are_long(shape, strides, index, backward) -> None:
    """The images are x, the result and dy; weights are read in 64 bits always."""
    x, y = (shape, strides), (shape, launch.strides_like(shape, torch.empty_strided(shape, strides, device="meta")))
    problem, w = model.problem_of(*shape, 4), ((shape[1], 1, 4), (2**40, 1, 1))
    made = launch.prepare(problem, torch.float32, device_model(-1), x, w, y, y if backward else None, 1, "", (False,) * 3)
    assert made.constants["INDEX"] == index
