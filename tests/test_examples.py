"""Every script under `examples/` runs, and says what its docstring promises."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    """The `main` function of a script."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_has_a_test():
    tested = {"train_small_net", "fuse_epilogue", "stream_causal_convolution", "report_network"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_a_small_net_trains_on_the_kernels(launches):
    losses = example("train_small_net")(steps=2, images=4)
    assert len(losses) == 2 and all(0 < loss < 5 for loss in losses)
    counted = launches()
    assert counted["fprop"] == 4 and counted["wgrad"] == 4 and counted["dgrad"] == 2


def test_the_fused_block_is_right(launched):
    assert example("fuse_epilogue")() < 1e-6
    assert launched()["fprop"] == 1


def test_the_stream_equals_the_whole(launched):
    assert example("stream_causal_convolution")(prompt=5, tokens=3) < 1e-5


def test_the_report_names_every_layer(capsys):
    traced = example("report_network")()
    printed = capsys.readouterr().out
    assert len(traced.convolutions) == 3
    assert printed.count("conv2d") == 3 and "bound by" in printed and "peak activations" in printed
