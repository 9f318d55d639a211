"""Models exported: as the ops, as torch's own convolution, as ONNX, and ahead of time by Inductor."""

import pytest
import torch
from torch import nn

import tritonconv
from tritonconv import convert, decompositions


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="zeros")
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)  # onnx's evaluator fails on groups here
        self.last = nn.Conv2d(4, 2, 2)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        y = torch.relu(self.up(torch.relu(self.conv(x))))
        return torch.relu(self.norm(self.last(y)))


X = torch.randn(2, 3, 6, 5)


def targets(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fused"])
def nets(request):
    net = Net().eval()
    return net, convert(net, fuse=request.param)


def test_a_program_keeps_the_ops_or_leaves_them(nets, launches):
    net, ours = nets
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(ours, (X,), dynamic_shapes=({0: batch},))
    assert any("tritonconv" in name for name in targets(program))
    close(program.module()(torch.cat([X, X])), net(torch.cat([X, X])))
    assert launches()
    before = launches()
    plain = program.run_decompositions(decompositions())
    found = targets(plain)
    assert not any("tritonconv" in name for name in found) and "aten.convolution.default" in found
    close(plain.module()(X), net(X))
    assert launches() == before


OPS = torch.ops.tritonconv


def normalised(x, w, b, prologue):
    with torch.no_grad():
        y = tritonconv.conv2d_fused(x, w, padding=1, prologue=prologue._replace(activation=None))
        return prologue(x) + y + tritonconv.conv2d_fused(x, w, b, padding=1, prologue=prologue, activation="relu")


#: Calls of the ops that torch's padding and output padding cannot say, and the gradients.
CALLS = {
    "uneven": lambda x, w, b: OPS.fprop(x, w, b, [1, 2], [2, 0, 0, 1], [1, 1], 1),
    "dgrad": lambda x, w, b: OPS.dgrad(x, w, b, [8, 6], [1, 1], [0, 0, 0, 0], [1, 1], 1),
    "dgrad, uneven": lambda x, w, b: OPS.dgrad(x, w, b, [7, 7], [1, 2], [1, 0, 2, 0], [1, 1], 1),
    "dgrad, rest": lambda x, w, b: OPS.dgrad(x, w, b, [13, 10], [2, 2], [0, 0, 0, 0], [1, 1], 1),
    "dgrad, groups": lambda x, w, b: OPS.dgrad(x, w[:, :1], None, [13, 9], [2, 2], [0, 0, 0, 0], [1, 1], 3),
    "wgrad": lambda x, w, b: OPS.wgrad(x, x, [1, 1], [1, 1], [0, 0, 0, 0], [1, 1], 1),
    "normalized": lambda x, w, b: normalised(x, w, b, tritonconv.group_norm_prologue(x, 1, b, b, activation="silu")),
    "normalized, rms": lambda x, w, b: normalised(x, w, b, tritonconv.rms_norm_prologue(x, b, activation="gelu")),
    "fused": lambda x, w, b: OPS.fprop_fused(x, w, b, [1, 1], [0] * 4, [1, 1], 1, b, b, None, "gelu", 0.01, True),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_op_is_torchs(name, launched):
    class Call(nn.Module):
        def forward(self, *given):
            return CALLS[name](*given)

    given = (torch.randn(2, 3, 6, 4), torch.randn(3, 3, 3, 3), torch.randn(3))
    plain = torch.export.export(Call(), given).run_decompositions(decompositions())
    assert not any("tritonconv" in target for target in targets(plain))
    got, want = plain.module()(*given), CALLS[name](*given)
    for a, b in zip(got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,), strict=True):
        close(a, b)


def test_onnx(nets):
    """As onnx's own reference evaluator computes it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    net, ours = nets
    model = torch.onnx.export(ours, (X,), dynamo=True, verbose=False).model_proto
    onnx.checker.check_model(model)
    assert {"Conv", "ConvTranspose"} <= {node.op_type for node in model.graph.node}
    assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)
    (got,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: X.numpy()})
    close(torch.from_numpy(got), net(X))
