"""diffusers' causal layers and VAEs on `causal_conv3d`, built from small configs without weights."""

import copy
import pickle

import pytest
import torch

from costmodel.networks.models import imported
from tritonconv import convert, report, revert

pytest.importorskip("diffusers")
imported("torchvision")  # declares operators that torchvision misses beside a torch without CUDA
MODELS = "diffusers.models.autoencoders.autoencoder_kl_"


def layer(module, name, *given, **named):
    return getattr(imported(MODELS + module), name)(*given, **named).eval()


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


CACHED = {
    "3x3x3": ((3, 2, 3), {"padding": 1}, (None, 1, 2, 3)),
    "time only": ((3, 2, (3, 1, 1)), {"padding": (1, 0, 0)}, (None, 2)),
    "no padding": ((3, 2, (3, 1, 1)), {"stride": (2, 1, 1)}, (None, 1)),
    "1x1x1": ((3, 2, 1), {}, (None,)),
}


@pytest.mark.parametrize("kind", [("wan", "WanCausalConv3d"), ("qwenimage", "QwenImageCausalConv3d")], ids=["wan", "qwen"])
@pytest.mark.parametrize("name", CACHED)
def test_layers_with_a_cache(name, kind, launches):
    given, named, caches = CACHED[name]
    ours = convert(model := layer(*kind, *given, **named))
    x = torch.randn(1, 3, 4, 5, 4)
    for frames in caches:
        cache = None if frames is None else torch.randn(1, 3, frames, 5, 4)
        before = launches()
        close(ours(x, cache), model(x, cache))
        assert (launches() - before)["video"] == (frames != 3)  # more than the filter sees: cropped by its own forward
    (found,) = report(ours).layers
    assert found.replaced and found.reason == "as causal_conv3d"
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        close(again(x), model(x))
    assert type(revert(ours)) is type(model)
    before = launches()
    close(ours(x), model(x))
    assert launches() == before


@pytest.mark.parametrize("taps", [1, 3])
def test_layers_that_repeat_a_frame(taps, launches):
    model = layer("cogvideox", "CogVideoXCausalConv3d", 3, 2, (taps, 3, 3))
    ours, cache, mine = convert(model), None, None
    for frames in (3, 1, 2):
        x = torch.randn(1, 3, frames, 4, 4)
        (want, cache), (got, mine) = model(x, cache), ours(x, mine)
        close(got, want)
        close(mine, cache)
    assert launches()["video"] == (3 if taps == 3 else 0) and sum(launches().values()) >= 3
    assert type(revert(ours)) is type(model)


STEPS = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True]}
LATENTS = {"latents_mean": [0.0] * 2, "latents_std": [1.0] * 2}
BLOCKS = {
    "block_out_channels": (4, 4),
    "down_block_types": ("CogVideoXDownBlock3D",) * 2,
    "up_block_types": ("CogVideoXUpBlock3D",) * 2,
    "latent_channels": 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "temporal_compression_ratio": 2,
}
VAES = {
    "wan": ("AutoencoderKLWan", {**STEPS, **LATENTS}),
    "qwenimage": ("AutoencoderKLQwenImage", {**STEPS, **LATENTS}),
    "cogvideox": ("AutoencoderKLCogVideoX", BLOCKS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VAES)
def test_whole_vaes(name, launches):
    """Encoded and decoded, in chunks where the VAE does that."""
    kind, settings = VAES[name]
    model = layer(name, kind, **settings)
    ours = convert(model, strict=True)
    found = report(ours)
    assert not found.left
    x = torch.randn(1, 3, 5, 8, 8)
    with torch.no_grad():
        want, got = model.encode(x).latent_dist.mean, ours.encode(x).latent_dist.mean
        close(got, want)
        torch.testing.assert_close(ours.decode(want).sample, model.decode(want).sample, rtol=1e-3, atol=1e-3)
    assert launches()["video"] > 10
