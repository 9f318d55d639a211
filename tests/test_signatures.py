"""The signatures of the six functions and their fused forms, which are written out twelve times: each fact once.

Why they are written out: docs/design/signatures.md.
"""

import inspect
import re
import typing

import pytest
import torch.nn.functional as F

import tritonconv
from tritonconv.functional import After

RANKS = (1, 2, 3)
KINDS = [kind + fused for kind in ("conv{}d", "conv_transpose{}d") for fused in ("", "_fused")]
PLAIN = [kind.format(rank) for kind in KINDS[::2] for rank in RANKS]


def parameters(name):
    return list(inspect.signature(getattr(tritonconv, name)).parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_of_a_kind_agree(kind):
    """In names, order, kinds, defaults and annotations; and each goes by its own name."""
    one, two, three = (parameters(kind.format(rank)) for rank in RANKS)
    assert one == two == three
    for rank in RANKS:
        function = getattr(tritonconv, kind.format(rank))
        assert inspect.isfunction(function) and function.__name__ == function.__qualname__ == kind.format(rank)
        assert typing.get_type_hints(function)["return"] is not None


@pytest.mark.parametrize("name", PLAIN)
def test_the_arguments_are_torchs(name):
    """The first line of torch's docstring is the signature that it has. What ours add can be given by keyword only."""
    (said,) = re.findall(rf"^{name}\((.*)\) -> Tensor$", getattr(F, name).__doc__, re.M)
    theirs = [(word.partition("=")[0], word.partition("=")[2]) for word in said.split(", ")]
    ours = parameters(name)
    given = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, "" if p.default is p.empty else str(p.default)) for p in given] == theirs
    assert {p.kind for p in ours} == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert ours[-1].name == "plan" and all(p.default is not p.empty for p in ours[3:])


@pytest.mark.parametrize("name", PLAIN)
def test_a_fused_one_is_the_plain_one_and_the_epilogue(name):
    plain, fused = parameters(name), parameters(f"{name}_fused")
    before = {} if "transpose" in name else {"prologue": None}
    more = [p for p in fused if p.name in (*After._fields, *before)]
    assert [p for p in fused if p not in more] == plain and fused[-1].name == "plan"
    assert {p.name: p.default for p in more} == After._field_defaults | before and {p.kind for p in more} == {plain[-1].kind}
