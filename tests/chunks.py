"""Calls of `causal_conv3d` and what they are by definition."""

import torch
import torch.nn.functional as F

OPS = torch.ops.tritonconv


def written_out(x, cache, reach, time_padding):
    """The frames that the first window begins with, to the last of x."""
    line = x if cache is None else torch.cat([cache, x], 2)
    if time_padding != "valid":
        for _ in range(reach - (line.shape[2] - x.shape[2])):
            before = line[:, :, :1] if time_padding == "replicate" else torch.zeros_like(line[:, :, :1])
            line = torch.cat([before, line], 2)
    return line


def by_definition(x, w, b=None, stride=1, padding=0, cache=None, dilation=1, upsample=1, time_padding="zeros"):
    """y in float64."""
    x, w, b, cache = (None if t is None else t.double() for t in (x, w, b, cache))
    in_time = dilation if isinstance(dilation, int) else dilation[0]
    line = written_out(x, cache, in_time * (w.shape[2] - 1), time_padding)
    if upsample == 2:
        line = F.interpolate(line, scale_factor=(1, 2, 2), mode="nearest")
    pads = (padding, padding) if isinstance(padding, int) else padding
    return F.conv3d(line, w, b, stride, (0, *pads), dilation)


def tensors(x, w, cached=0, last=True, dtype=torch.float64, device="cpu", seed=0):
    """x, weight, bias and cache of these shapes."""
    random = torch.Generator().manual_seed(seed)

    def values(*shape):
        found = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).to(device)
        return found.to(memory_format=torch.channels_last_3d) if last and len(shape) == 5 else found

    cache = values(*x[:2], cached, *x[3:]) if cached else None
    return values(*x), values(*w), values(w[0]), cache


def assert_close(got, want, rounding=1e-13):
    assert got.shape == want.shape
    if want.numel():
        assert (got.detach().cpu().double() - want.cpu()).abs().max() <= rounding * want.abs().max()


CALLS = {
    "wan, cached": ((2, 5, 1, 6, 7), (4, 5, 3, 3, 3), 2, {"padding": 1}),
    "wan, first chunk": ((1, 5, 1, 6, 7), (4, 5, 3, 3, 3), 0, {"padding": 1}),
    "one cached frame of two": ((1, 5, 2, 6, 7), (4, 5, 3, 3, 3), 1, {"padding": 1}),
    "replicate": ((2, 5, 3, 6, 7), (4, 5, 3, 3, 3), 0, {"padding": 1, "time_padding": "replicate"}),
    "replicate the cache's": ((1, 5, 2, 4, 5), (4, 5, 4, 1, 1), 1, {"time_padding": "replicate"}),
    "replicate, dilated": (
        (1, 4, 3, 5, 4),
        (3, 4, 3, 3, 2),
        1,
        {"time_padding": "replicate", "dilation": (2, 1, 2), "padding": (0, 1)},
    ),
    "dilated in time": ((1, 4, 3, 4, 5), (3, 4, 3, 1, 1), 3, {"dilation": (2, 1, 1)}),
    "wan's downsampler": ((1, 5, 4, 6, 7), (4, 5, 3, 1, 1), 1, {"stride": (2, 1, 1), "time_padding": "valid"}),
    "strided": ((2, 4, 4, 6, 7), (3, 4, 3, 3, 3), 2, {"stride": (2, 2, 3), "padding": (1, 2)}),
    "stride over the kernel": ((1, 4, 4, 6, 7), (3, 4, 1, 2, 2), 0, {"stride": (2, 3, 3)}),
    "a window of 49 taps": ((1, 4, 2, 6, 7), (3, 4, 2, 7, 7), 1, {"padding": 3, "dilation": (1, 1, 2)}),
    "no spatial padding": ((1, 4, 2, 6, 7), (3, 4, 2, 3, 3), 1, {}),
    "upsample frames": ((2, 5, 2, 4, 5), (4, 5, 1, 3, 3), 0, {"padding": 1, "upsample": 2}),
    "upsample": ((1, 5, 2, 4, 5), (4, 5, 3, 3, 3), 1, {"padding": 1, "upsample": 2}),
    "upsample, odd": ((1, 3, 2, 4, 5), (4, 3, 2, 2, 4), 1, {"padding": (0, 2), "dilation": (1, 2, 1), "upsample": 2}),
    "upsample, replicate": ((1, 3, 2, 3, 4), (4, 3, 3, 3, 3), 0, {"padding": 2, "upsample": 2, "time_padding": "replicate"}),
}
