"""What a traced model refuses is said with the module, the shapes, and what to give instead."""

import pytest
import torch
from torch import nn

from costmodel.networks.network import trace


def test_a_shape_in_a_dictionary_is_refused_with_what_to_give():
    """It might be an argument of the model's own: only a positional tuple of ints is an input's shape."""

    class Batch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, batch, sizes=None):
            return self.conv(batch["x"])

    meant = "conv .Conv2d. does not take its arguments: .*; a shape that is a keyword or in a dictionary is passed on"
    with pytest.raises(ValueError, match=meant) as refused:
        trace(Batch(), {"x": (1, 3, 8, 8)})
    assert "but expected one of" not in str(refused.value)
    image = torch.empty(1, 3, 8, 8, device="meta")
    assert trace(Batch(), {"x": image}, sizes=(8, 8)).inference.dense_macs == 4 * 27 * 36
    with pytest.raises(ValueError, match=r"conv .Conv2d. does not take .1, 4, 8, 8.") as refused:
        trace(Batch(), {"x": torch.empty(1, 4, 8, 8)})
    assert "passed on" not in str(refused.value)
