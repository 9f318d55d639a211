"""What a drop-in meets sooner or later: each a clear error or a right result, and nothing lost."""

import multiprocessing
import subprocess
import sys
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonconv
from costmodel.tiling import Plan
from tritonconv import convert, launch, report, steps

X, W = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_mixed_devices(launches):
    layer = convert(nn.Conv2d(3, 4, 3)).to("meta")
    with pytest.raises(RuntimeError, match="input and weight must be on the same device, got input cpu and weight meta"):
        layer(X)
    assert not launches()


def test_a_frozen_layer(launches):
    """No gradient of its weight is computed, and the one that goes on is right."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    model[1].requires_grad_(False)
    other = convert(model)
    model(X).square().sum().backward()
    other(X).square().sum().backward()
    assert launches()["wgrad"] == 1 and other[1].weight.grad is None
    close(other[0].weight.grad, model[0].weight.grad)
    before = launches()
    with torch.no_grad():
        assert not other(X).requires_grad
    with torch.inference_mode():
        close(other(X), model(X))
    assert (launches() - before)["fprop"] == 4


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_layer():
    layer = torch.ao.nn.quantized.Conv2d(3, 4, 3)
    model = convert(nn.Sequential(layer))
    assert report(model).layers[0].reason == "it is quantised, and multiplies integers"
    quantised = torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
    close(model(quantised).dequantize(), layer(quantised).dequantize())
    with pytest.raises(RuntimeError, match=r"input has dtype torch\.quint8; tritonconv takes float16, bfloat16, float32"):
        tritonconv.conv2d(quantised, W)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers(value, launched):
    x = X.clone()
    x[0, 1, 2, 2] = value
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    got, want = convert(model)(x), model(x)
    assert got[0].isfinite().logical_not().any() and torch.equal(got.isfinite(), want.isfinite())
    close(got[1], want[1])


def test_nothing_at_all(launches):
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 2)))
    x = torch.empty(0, 3, 5, 5, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.shape == (0, 2, 4, 4) and x.grad.shape == x.shape
    assert not model[0].weight.grad.any() and not launches()
    with pytest.raises(RuntimeError, match="only the batch may be empty"):
        model(torch.empty(2, 3, 0, 5))


def test_many_threads_at_once(launches):
    """32 of them, each with a problem of its own and one that all share, forward and backward."""
    wrong = []

    def work(number):
        try:
            for width in (5, 4 + number % 4):
                x = torch.full((1, 3, 4, width), float(number), requires_grad=True)
                y = tritonconv.conv2d(x, W)
                close(y, F.conv2d(x.detach(), W))
                y.sum().backward()
                close(x.grad[0, :, 0, 0], W[:, :, 0, 0].sum(0))
        except Exception as error:  # a thread's own would be lost
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and launches()["fprop"] == 64


def _convolved(queue):
    queue.put(float(tritonconv.conv2d(X, W).sum()))


def test_a_forked_process(launched):
    want = float(tritonconv.conv2d(X, W).sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    held, done = threading.Event(), threading.Event()

    def computing():
        with tritonconv.host._turn:
            held.set()
            done.wait()

    thread = threading.Thread(target=computing)
    thread.start()
    held.wait()
    process = context.Process(target=_convolved, args=(queue,))
    process.start()
    done.set()
    thread.join()
    try:
        assert queue.get(timeout=30) == want
    finally:
        process.kill()
        process.join()


def test_a_gpu_too_old(monkeypatch):
    class Old:
        major, minor, name, multi_processor_count = 7, 0, "Tesla V100", 80

    launch.device_model.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Old)
    with pytest.raises(RuntimeError, match=r"needs a GPU of compute capability 8.0 or newer.*Tesla V100 has 7.0"):
        launch.device_model(0)
    launch.device_model.cache_clear()


def test_a_triton_too_old():
    code = "import triton; triton.__version__ = '3.5.1'; import tritonconv"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 1 and "ImportError: tritonconv needs Triton 3.6 or newer" in made.stderr
    assert "here is Triton 3.5.1" in made.stderr


def test_no_memory_for_partial_sums(monkeypatch, launches):
    x, w = torch.randn(1, 64, 4, 4), torch.randn(4, 64, 3, 3)
    plan = Plan.parse("fprop:gather:16x16x16:w4:s3:split2")
    shared = tritonconv.conv2d(x, w, plan=plan)
    assert launches()["reduce"] == 1

    def full(*shape, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Torch:
        """the launch's torch, whose memory is full."""

        def __getattr__(self, name):
            return full if name == "empty" else getattr(torch, name)

    monkeypatch.setattr(steps, "torch", Torch())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            close(tritonconv.conv2d(x, w, plan=plan), shared)
        close(tritonconv.conv2d_fused(x, w, activation="relu", plan=plan), shared.relu())
    alone = "so it runs as fprop:gather:16x16x16:w4:s3"
    assert [str(each.message) for each in said] == [
        f"fprop of conv2d n1 c64 4x4 -> 4 k3x3: no memory for 2 partial sums, {alone}"
    ]
    monkeypatch.setattr(steps.Launch, "run", full)
    with pytest.raises(torch.OutOfMemoryError):
        tritonconv.conv2d(x, w)
