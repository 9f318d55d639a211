"""What a trace has besides convolutions: rows, gradients only where they are needed, other operators, errors."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from costmodel.count import Cost
from costmodel.device import DEVICES
from costmodel.networks.crosscheck import UNEXPLAINED, crosscheck
from costmodel.networks.network import Layer, Network, trace
from costmodel.networks.operators import ELEMENTWISE, REDUCTIONS
from costmodel.networks.sweeps import read_again
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import channels_last
from tritonconv.layout import channels_last_strides, operand

N, C, H, W = X = 2, 32, 20, 24
H200 = DEVICES["NVIDIA H200"]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.stem(x)).mean((2, 3)))


def rows(network: Network) -> dict[str, Layer]:
    return {layer.name: layer for layer in network.layers}


def test_rows_of_a_small_network() -> None:
    network = trace(Small(), (4, 3, 10, 10))
    found = rows(network)
    assert list(found) == ["stem.0", "stem.1", "stem.2", "pool", "mean", "head"]
    assert found["stem.1"].forward.other_flops == 2 * 4 * 8 * 64  # a scale and a shift
    assert found["stem.2"].forward == Cost(other_flops=2048, bytes=2 * 4 * 2048, im2col_bytes=2 * 4 * 2048)
    assert found["pool"].forward.other_flops == 4 * 4 * 8 * 16
    assert found["mean"].forward.other_flops == 4 * 8 * 16
    assert (found["head"].forward.dense_macs, found["head"].forward.bias_flops) == (4 * 8 * 5, 4 * 5)
    assert found["head"].forward.bytes == 4 * (4 * 8 + 8 * 5 + 5 + 4 * 5)
    assert [step.op for step in found["head"].backward] == ["mm", "mm", "sum"]
    assert [step.op for step in found["stem.2"].backward] == ["threshold_backward"]
    training = rows(trace(Small(), (4, 3, 10, 10), train=True))
    assert training["stem.1"].forward.other_flops == 8 * 4 * 8 * 64  # mean and variance too


def test_totals_groups_and_training_run() -> None:
    network = trace(Small(), (4, 3, 10, 10))
    assert network.inference + sum((layer.backward_cost for layer in network.layers), Cost()) == network.training_step
    groups = network.groups(1)
    assert [group.name for group in groups] == ["stem", "pool", "", "head"]
    assert sum((group.forward for group in groups), Cost()) == network.inference
    assert sum(group.parameters for group in groups) == network.parameters == 8 * 27 + 16 + 45
    assert network.training_run(samples=10, epochs=3) == network.training_step * 9
    with pytest.raises(ValueError, match="samples must not be negative, got -1"):
        network.training_run(-1)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        network.groups(0)


def test_a_frozen_layer_has_no_weight_gradient_and_what_is_before_it_no_gradient_at_all() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1))
    model[1].requires_grad_(False)
    first, second, third = trace(model, (1, 3, 8, 8)).convolutions
    assert [step.which for step in first.backward] == ["wgrad"]
    assert [step.which for step in second.backward] == ["dgrad"]
    assert [step.which for step in third.backward] == ["dgrad", "wgrad"]
    model[0].requires_grad_(False)
    first, second, third = trace(model, (1, 3, 8, 8)).convolutions
    assert (first.backward, second.backward) == ((), ())
    assert [step.which for step in third.backward] == ["wgrad"]
    frozen = trace(model.requires_grad_(False), (1, 3, 8, 8))
    assert frozen.notes == ("no parameter requires a gradient",)
    assert frozen.training_step == frozen.inference


def test_a_transposed_convolution_with_bias() -> None:
    (layer,) = trace(nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)).layers
    assert (layer.op, layer.which, layer.output_shape) == ("conv_transpose2d", Pass.DGRAD, (2, 6, 11, 11))
    assert layer.forward.bias_flops == layer.backward_cost.bias_flops == 2 * 6 * 11 * 11
    tensors = 2 * 4 * 25 + 4 * 6 * 9 + 2 * 6 * 121
    assert layer.forward.bytes == layer.backward_cost.bytes == 4 * (tensors + 6)


def test_an_in_place_operator_keeps_its_copy_for_the_gradient_out_of_inference() -> None:
    network = trace(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU6(inplace=True)), (1, 3, 8, 8))
    _, relu = network.layers
    assert relu.name == "1" and relu.forward.bytes == 2 * 4 * 4 * 64
    assert [step.op for step in relu.backward] == ["clone", "hardtanh_backward"]


def test_unknown_operators_are_listed_and_their_bytes_counted() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(torch.special.bessel_j0(x)) + torch.linalg.inv(x)

    network = trace(Odd(), (4, 4))
    assert network.unknown == {"special_bessel_j0": 2, "linalg_inv_ex": 1}
    unknown = [layer for layer in network.layers if not layer.known]
    assert len(unknown) == 3
    assert all(layer.forward.bytes > 0 and layer.forward.other_flops == 0 for layer in unknown)


def test_attention_recurrence_and_embedding() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    network = trace(layer, (3, 7, 16))
    tokens = 3 * 7
    assert network.inference.dense_macs == tokens * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 3 * 7 * 7 * 16
    assert not network.unknown
    assert {row.explanation for row in crosscheck(layer, (3, 7, 16))} <= {
        "",
        "torch has a formula for fused attention on a GPU, none for it on a CPU",
    }

    lstm = trace(nn.LSTM(5, 6, batch_first=True), (2, 4, 5))
    assert lstm.inference.dense_macs == 2 * 4 * 4 * 6 * (5 + 6)
    assert not lstm.unknown

    table = trace(nn.Embedding(1000, 8), torch.zeros(2, 3, dtype=torch.long))
    (row,) = table.layers
    assert row.forward.bytes == 2 * (2 * 3 * 8) * 4 + 2 * 3 * 8  # rows read and written, indices read


def test_weights_may_be_anywhere_and_are_left_alone() -> None:
    model = Small().eval()
    model.stem[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    real = trace(model, (4, 3, 10, 10), train=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == fused
    with torch.device("meta"):
        assert trace(Small(), (4, 3, 10, 10), train=True) == real
    assert trace(model, torch.empty(4, 3, 10, 10, device="meta"), train=True) == real


def test_a_trace_may_follow_torchs_own_test_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.library.opcheck` imports them, and they forbid setting flags of torch's backends but in a `with`."""
    monkeypatch.setitem(torch.backends.flags_frozen.__globals__, "__allow_nonbracketed_mutation_flag", False)
    assert len(trace(nn.Conv2d(3, 8, 3), (1, 3, 8, 8)).layers) == 1


def test_tensors_kept_outside_buffers_join_in() -> None:
    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.offset = nn.Linear(4, 4), torch.ones(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + self.offset + torch.ones(4)

    with torch.device("meta"):
        model = Offset()
    assert not trace(model, (2, 4)).unknown
    assert trace(Offset(), (2, 4)).inference.dense_macs == 32


def test_dtype_scales_bytes_and_nothing_else() -> None:
    network = trace(Small(), (4, 3, 10, 10))
    half = trace(Small(), (4, 3, 10, 10), dtype=torch.bfloat16)
    assert half.dtype == "bfloat16"
    layer, other = rows(network)["stem.0"], rows(half)["stem.0"]
    assert layer.in_dtype("bfloat16") == other
    assert other.forward.bytes * 2 == layer.forward.bytes
    assert replace(other.forward, bytes=0, im2col_bytes=0) == replace(layer.forward, bytes=0, im2col_bytes=0)
    with pytest.raises(ValueError, match="dtype 'int4' is unknown: one of fp16, bf16, tf32, fp32"):
        network.on(H200, "int4")


def test_time_on_a_device() -> None:
    network = trace(Small(), (64, 3, 64, 64))
    inference, training = network.on(H200, "bfloat16"), network.on(H200, "bfloat16", training=True)
    for timed in (inference, training):
        assert sum(row.share for row in timed) == pytest.approx(1)
        assert all(row.seconds >= H200.launch_overhead and row.bound for row in timed)
        assert [row.layer.name for row in timed] == [layer.name for layer in network.layers]
        for row in timed:  # nothing is faster than its bytes or its multiply-adds
            assert row.seconds > row.cost.bytes / (H200.bandwidth * 1e9)
            assert row.seconds > row.cost.useful_flops / H200.rate("bfloat16")
    assert all(b.seconds > a.seconds for a, b in zip(inference, training, strict=True))
    slow = replace(H200, bandwidth=H200.bandwidth / 1e6)
    assert {row.bound for row in network.on(slow, "bfloat16")} == {"DRAM"}
    (*_, head) = network.on(replace(H200, fp32=1e-6), "float32")
    assert (head.layer.op, head.bound) == ("addmm", "arithmetic")
    assert head.seconds == pytest.approx((2 * 64 * 8 * 5 + 64 * 5) / 1e6 + H200.launch_overhead)


@pytest.mark.parametrize("which", Pass)
@pytest.mark.parametrize("groups", [1, 4])
def test_channels_last_calls_are_those_of_dense_tensors(which: Pass, groups: int) -> None:
    problem = ConvProblem.conv((4, 24, 9, 9), (16, 24 // groups, 3, 3), (1, 1), (1, 1), (1, 1), groups)
    shapes = problem.input_shape, problem.weight_shape, problem.output_shape
    x, w, y = (operand(s, channels_last_strides(s), groups, int(i != 1)) for i, s in enumerate(shapes))
    expected = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
    call = channels_last(problem, which, "float16", "ieee")
    if groups == 1:
        assert (call.a, call.b, call.out) == expected
    else:  # a weight's group starts on whole filters, so it may be aligned better than said
        assert (call.a.unit, call.b.unit, call.out.unit) == (1, 1, 1)
        assert all(said.align <= true.align for said, true in zip((call.a, call.b, call.out), expected, strict=True))


def test_bad_input_says_which_module_refused_which_shape() -> None:
    model = Small()
    with pytest.raises(ValueError) as caught:
        trace(model, (4, 4, 10, 10))
    assert str(caught.value).startswith("stem.0 (Conv2d) does not take [4, 4, 10, 10]: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^stem.1 \(BatchNorm2d\) does not take \[8, 8, 8\]: "):
        trace(model, (3, 10, 10))
    with pytest.raises(ValueError, match=r"^input 0 must be a shape of positive sizes, got \[4, 0, 3\]$"):
        trace(model, (4, 0, 3))
    with pytest.raises(ValueError, match=r"^the model \(Small\) does not take its arguments: "):
        trace(model)
    with pytest.raises(TypeError, match=r"^model must be a torch.nn.Module, got function$"):
        trace(lambda x: x, (1, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parameters without a shape"):
        trace(nn.LazyConv2d(4, 3), (1, 3, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_whose_shapes_depend_on_values_is_refused() -> None:
    class Picks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0]

    class Reads(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    for model in (Picks(), Reads()):
        with pytest.raises(
            ValueError, match=r"does not take \[2, 3\]: its result depends on values, and a trace has none \(aten"
        ):
            trace(model, (2, 3))


def test_a_model_without_a_backward_pass_says_so() -> None:
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x + 1

        @staticmethod
        def backward(ctx: object, dy: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not differentiable\nat all")

    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return NoGradient.apply(super().forward(x))

    assert trace(Model(2, 2), (1, 2)).notes == ("the backward pass could not be traced: not differentiable",)

    class Detached(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    assert trace(Detached(2, 2), (1, 2)).notes == ("no output requires a gradient",)


def test_the_tables_do_not_contradict_each_other() -> None:
    assert not set(ELEMENTWISE) & set(REDUCTIONS)


def test_unexplained_differences_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(4, 5)
    network = trace(model, (2, 4))
    twice = replace(network, layers=(network.layers[0], *network.layers))
    row = next(row for row in crosscheck(model, (2, 4), network=twice) if row.op == "addmm")
    assert (row.ours, row.torch, row.explanation, row.explained) == (160, 80, UNEXPLAINED, False)


def test_rows_are_plain_data() -> None:
    layer = trace(Small(), (4, 3, 10, 10)).layers[0]
    assert json.loads(json.dumps({"input": layer.input_shape, "macs": layer.forward.dense_macs})) == {
        "input": [4, 3, 10, 10],
        "macs": 4 * 8 * 27 * 64,
    }


class Pattern(nn.Module):
    """A normalisation behind a convolution, so that x has a gradient."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.stem(x))


#: The module, whether it trains, and how often each direction moves a tensor of x's size.
NORMS = {
    "batch norm": (nn.BatchNorm2d(8), True, 3, 5),
    "batch norm with stored statistics": (nn.BatchNorm2d(8), False, 2, 3),
    "batch norm without parameters": (nn.BatchNorm2d(8, affine=False), True, 3, 5),
    "instance norm": (nn.InstanceNorm2d(8), False, 3, 5),
    "group norm": (nn.GroupNorm(2, 8), False, 3, 5),
    "layer norm": (nn.LayerNorm([8, 64, 64]), False, 2, 5),
    "layer norm without parameters": (nn.LayerNorm([8, 64, 64], elementwise_affine=False), False, 2, 3),
}


@pytest.mark.parametrize("norm, train, forward, backward", NORMS.values(), ids=NORMS)
def test_what_a_normalisation_reads_twice(norm: nn.Module, train: bool, forward: int, backward: int) -> None:
    """Compulsory bytes are one transfer of each tensor; the prediction's are those that a statistic takes."""
    network = trace(Pattern(norm), (64, 3, 64, 64), train=train)
    layer = next(row for row in network.layers if "norm" in row.op)
    x = 4 * 64 * 8 * 64 * 64
    assert (layer.forward.bytes // x, layer.backward_cost.bytes // x) == (2, 3)
    again = layer.forward.read_again, layer.backward_cost.read_again
    assert again == ((forward - 2) * x, (backward - 3) * x)
    for training, moved in ((False, forward), (True, forward + backward)):
        row = next(row for row in network.on(H200, "float32", training=training) if row.layer is layer)
        launches = 1 + training * len(layer.backward)
        seconds = row.seconds - launches * H200.launch_overhead
        assert seconds == pytest.approx(moved * x / (H200.bandwidth * 1e9), rel=0.02)
        assert row.cost.bytes // x == (2 + 3 * training)
    half = layer.in_dtype("float16")
    assert (half.forward.read_again, half.backward_cost.read_again) == tuple(n // 2 for n in again)


def test_a_gradient_that_is_not_asked_for_reads_nothing_twice() -> None:
    x, w = torch.empty(4, 8), torch.empty(8)
    rms = partial(read_again, "_fused_rms_norm_backward")  # which torch takes apart on a CPU
    assert rms([x, x, [8], w, w, [True, True]]) == 2 * 4 * 32 and rms([x, x, [8], w, w, [True, False]]) == 0
    group = partial(read_again, "native_group_norm_backward")
    assert group([x, x, w, w, w, 4, 8, 1, 2, [True, True, True]]) == 2 * 4 * 32
    assert group([x, x, w, w, w, 4, 8, 1, 2, [False, True, True]]) == 0  # sums alone
    assert read_again("cudnn_batch_norm_backward", [x, x, w, w, w, w, w, 1e-5, x]) == 2 * 4 * 32
    assert read_again("_softmax", [x, 1, False]) == read_again("native_layer_norm", [x, [8], w, w, 1e-5]) == 0
