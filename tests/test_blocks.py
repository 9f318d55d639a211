"""Modules beyond torch's six: lazy ones, causal ones with their state, a convolution with norm and activation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonconv
from tritonconv.nn import CausalConv1d, CausalConv3d

SIZES = {1: (1, 3, 6), 2: (1, 3, 5, 4), 3: (1, 3, 3, 4, 3)}


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("transposed", ["", "Transpose"])
def test_lazy_layers_run_on_kernels_from_the_first_call(rank, transposed, launches):
    name = f"Conv{transposed}{rank}d"
    layer, x = getattr(tritonconv.nn, f"Lazy{name}")(4, 2), torch.randn(SIZES[rank])
    y = layer(x)
    assert type(layer) is getattr(tritonconv.nn, name) and layer.in_channels == 3
    assert sum(launches()[which] for which in ("fprop", "dgrad")) == 1
    close(y, getattr(F, f"conv_transpose{rank}d" if transposed else f"conv{rank}d")(x, layer.weight, layer.bias))


def test_a_sequence_in_parts_and_token_by_token(launched):
    torch.manual_seed(0)
    want = nn.Conv1d(4, 4, 3, groups=4)
    torch.manual_seed(0)
    layer, x = CausalConv1d(4, 3, activation="silu").requires_grad_(False), torch.randn(2, 4, 7)
    y = F.silu(want(F.pad(x, (2, 0))))
    close(layer(x), y)
    first, state = layer(x[..., :4], return_final_state=True)
    close(torch.cat([first, layer(x[..., 4:], state)], 2), y)
    close(torch.stack([layer.step(x[..., t], state) for t in (4, 5, 6)], 2), y[..., 4:])
    assert repr(layer) == "CausalConv1d(4, kernel_size=3, bias=True, activation='silu')"


def test_a_video_in_chunks(launched):
    layer, x = CausalConv3d(3, 2, (2, 3, 3), padding="same"), torch.randn(1, 3, 4, 4, 3)
    want = F.conv3d(F.pad(x, (1, 1, 1, 1, 1, 0)), layer.weight, layer.bias)
    close(layer(x), want)
    first, cache = layer(x[:, :, :1], return_cache=True)
    close(torch.cat([first, layer(x[:, :, 1:], cache)], 2), want)


def test_a_video_of_groups_between_a_norm_and_a_residual():
    layer = CausalConv3d(4, 2, (1, 3, 3), padding=1, groups=2, padding_mode="replicate").requires_grad_(False)
    x, residual = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 2, 2, 3, 3)
    got = layer(x, prologue=tritonconv.group_norm_prologue(x, 2, activation="silu"), residual=residual)
    normed = F.pad(F.silu(F.group_norm(x, 2)), (1, 1, 1, 1, 0, 0), mode="replicate")
    close(got, F.conv3d(normed, layer.weight, layer.bias, groups=2) + residual)
    assert "groups=2, padding_mode=replicate" in repr(layer)


@pytest.mark.parametrize("rank", SIZES)
def test_a_convolution_with_norm_and_activation(rank, launches):
    layer = getattr(tritonconv.nn, f"ConvBnAct{rank}d")(3, 3, 3, padding=1, activation="leaky_relu", negative_slope=0.2)
    x = torch.randn(SIZES[rank])
    with torch.no_grad():
        layer.bn.running_mean.normal_()
        layer.bn.weight.normal_()

    def want():
        z = getattr(F, f"conv{rank}d")(x, layer.conv.weight, padding=1)
        return F.leaky_relu(layer.bn(z) + x, 0.2)

    close(layer(x, x), want())  # in training mode
    layer.eval()
    before = launches()
    got = layer(x, x)
    assert (launches() - before)["fprop"] == 1
    close(got, want())
    with pytest.raises(ValueError, match=f"ConvBnAct{rank}d: activation must be None or one of"):
        type(layer)(3, 3, 3, activation="mish")
