"""`with costmodel.measure(model)`: what is recorded is compared; without a GPU there is a forecast, and words."""

import pytest
import torch

import costmodel
from tests.kineto import Layer, Trace
from tests.test_compare import Net


def test_measure_on_a_cpu_says_what_is_missing_and_forecasts(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch.no_grad(), costmodel.measure(Net().eval(), device="l4") as found:
        found_model = Net().eval()
    assert not found.forecast and "was not called" in capsys.readouterr().err
    with torch.no_grad(), costmodel.measure(found_model, device="l4") as found:
        found_model(torch.randn(4, 3, 16, 16))
    out = " ".join(capsys.readouterr().out.split())
    assert "Nothing was measured: torch sees no CUDA device" in out and "NVIDIA L4" in out
    assert [row.layer.name for row in found.forecast] == ["stem", "next"] and found.comparison is None
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"), costmodel.measure("model"):
        pass


def test_measure_on_a_gpu_compares_what_the_profiler_recorded(capsys, monkeypatch, tmp_path):
    """The profiler is a stand-in that hands out a made-up trace."""
    trace = Trace()
    trace.forward(Layer([8, 3, 32, 32], [16, 3, 3, 3], padding=1))

    class Profiler:
        def __init__(self, activities, record_shapes):
            assert record_shapes and torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def export_chrome_trace(self, path):
            trace.write(tmp_path / "made.json").rename(path)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    with costmodel.measure(Net(), keep=tmp_path / "kept.json") as found:
        pass
    assert found.comparison.device.name == "NVIDIA A100-SXM4-80GB"
    assert len(found.comparison.layers) == 1 and found.trace.is_file()
    assert "Largest losses" in capsys.readouterr().out
