"""What torch does not promise is taken in one module, and is there."""

import ast
from pathlib import Path

import pytest
import torch

from tritonconv import private

ROOT = Path(private.__file__).parent


def test_this_torch_has_all_of_it():
    x = torch.ones(2, requires_grad=True)
    with private.below_autograd():
        assert not (x * 2).requires_grad
    with private.below_in_place():
        assert not (x * 2).requires_grad
    assert not private.transforms_are_active() and not private.is_differentiated_forwards()
    torch.func.grad(lambda t: [t.sum()][not private.transforms_are_active()])(torch.ones(2))
    with torch.autograd.forward_ad.dual_level():
        assert private.is_differentiated_forwards()
        dual = torch.autograd.forward_ad.make_dual(torch.ones(2), torch.full((2,), 3.0))
        primal, tangent = private.tangent_parts(dual)
        assert primal.tolist() == [1, 1] and tangent.tolist() == [3, 3]
        with private.forward_mode(False):
            assert private.tangent_parts(dual * 2)[1] is None
    with private.one_level():
        pass
    with torch.autocast("cpu", torch.bfloat16), private.without(private.autocast_keys("cuda", "cpu")):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
    plain, keys = torch.ones(2), private.thread_keys()
    assert private.is_dispatched_plainly(False, plain) and private.is_dispatched_plainly(True, x)
    assert not private.is_observed() and private.fp32_precision() == torch.backends.cudnn.conv.fp32_precision
    with torch.autocast("cpu", torch.bfloat16):
        assert private.thread_keys() != keys and not private.is_dispatched_plainly(False, plain)
    with private.below_autograd():
        assert private.is_dispatched_plainly(False, x) and not private.is_dispatched_plainly(True, x)
    torch.func.vmap(lambda t: [t][private.is_dispatched_plainly(False, t)])(plain)  # an index of 1 would raise
    with torch.device("cpu"):
        assert private.is_observed()
    with torch._subclasses.FakeTensorMode():
        assert isinstance(torch.empty(2), private.FakeTensor)
    marked = torch.compiler.assume_constant_result(lambda: 3)
    assert vars(private.constant(lambda: 3)) == vars(marked) != {}


def private_names(path: Path) -> list[str]:
    """Names behind an underscore that a module takes of torch."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner.split(".")[0] in ("torch", "forward_ad"):
                found.append(f"{path.name}: {owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            named = [*node.module.split("."), *(name.name for name in node.names)]
            found += [f"{path.name}: from {node.module}" for part in named if part.startswith("_")]
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_else_takes_what_torch_does_not_promise(path):
    assert bool(private_names(path)) == (path.name == "private.py"), private_names(path)
