"""Known prologues and statistics: what is in their keys, and what stays refused beside a known call."""

import pytest
import torch
from test_recipes import found, nothing_is_known  # noqa: F401
from test_recipes_recorded import are_equal, deform, ordinary, strided, tensors_of

import tritonconv
from tritonconv import recipes

pytestmark = pytest.mark.interpreter


def test_a_bad_call_stays_bad_beside_a_known_one(launched):
    x, offset, w, b, mask = tensors_of("deform")
    image = tensors_of("group norm")[0]
    for _ in range(2):
        deform(x, offset, w, b, mask), tritonconv.unfold(x, 2), tritonconv.group_norm_prologue(image, 2)
        tritonconv.rms_norm_prologue(image), tritonconv.Prologue(activation="silu")(image)
    for bad in (
        lambda: deform(x, offset[:, :3], w, b, mask),
        lambda: deform(x, offset, w.double(), b, mask),
        lambda: tritonconv.unfold(x, True),
        lambda: tritonconv.unfold(x, 2.0),
        lambda: tritonconv.group_norm_prologue(image, True),
        lambda: tritonconv.group_norm_prologue(image, 3),
        lambda: tritonconv.group_norm_prologue(image, 2, activation="silo"),
        lambda: tritonconv.group_norm_prologue(image, 2, eps=-1.0),
        lambda: tritonconv.rms_norm_prologue(image, image),
        lambda: tritonconv.Prologue(activation="silo")(image),
        lambda: tritonconv.Prologue(activation="silu", negative_slope=True)(image),
        lambda: tritonconv.Prologue(image, activation="silu")(image),
    ):
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            bad()


#: Calls that differ from the first of their row in one argument that changes the answer.
FLIPS = {
    "group norm": [
        lambda x, w, b: tritonconv.group_norm_prologue(x, 2, w, b),
        lambda x, w, b: tritonconv.group_norm_prologue(x, 1, w, b),
        lambda x, w, b: tritonconv.group_norm_prologue(x, 2, w),
        lambda x, w, b: tritonconv.group_norm_prologue(x, 2, None, b),
        lambda x, w, b: tritonconv.group_norm_prologue(x, 2, w, b, 1e-2),
        lambda x, w, b: tritonconv.group_norm_prologue(x, 2, w, b, per_frame=True),
        lambda x, w, b: tritonconv.group_norm_prologue(x, 2, strided(w), b),
        lambda x, w, b: tritonconv.group_norm_prologue(x.contiguous(), 2, w, b),
        lambda x, w, b: tritonconv.group_norm_prologue(x[:1], 2, w, b),
        lambda x, w, b: tritonconv.group_norm_prologue(x.double(), 2, w.double(), b.double()),
        lambda x, w, b: tritonconv.group_norm_prologue(x[:, :, 0], 2, w, b),
    ],
    "rms norm": [
        lambda x, w, b: tritonconv.rms_norm_prologue(x, w, b),
        lambda x, w, b: tritonconv.rms_norm_prologue(x, w, b, 1e-2),
        lambda x, w, b: tritonconv.rms_norm_prologue(x.contiguous(), w, b),
        lambda x, w, b: tritonconv.rms_norm_prologue(x[:, :, 0], w, b),
        lambda x, w, b: tritonconv.rms_norm_prologue(x.half(), w, b),
    ],
    "prologue": [
        lambda x, w, b: tritonconv.Prologue(w, b, None, "leaky_relu")(x),
        lambda x, w, b: tritonconv.Prologue(w, b, None, "leaky_relu", 0.5)(x),
        lambda x, w, b: tritonconv.Prologue(w, b, None, "silu")(x),
        lambda x, w, b: tritonconv.Prologue(w, None, None, "leaky_relu")(x),
        lambda x, w, b: tritonconv.Prologue(None, b, None, "leaky_relu")(x),
        lambda x, w, b: tritonconv.Prologue(w.expand(2, 4), b, None, "leaky_relu")(x),
        lambda x, w, b: tritonconv.Prologue(strided(w), b, None, "leaky_relu")(x),
        lambda x, w, b: tritonconv.Prologue(w, b, x[:, 0].contiguous(), "leaky_relu")(x),
        lambda x, w, b: tritonconv.Prologue(w, b, None, "leaky_relu")(x[:, :, 0]),
        lambda x, w, b: tritonconv.Prologue(w, b, None, "leaky_relu")(x.contiguous()),
    ],
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", FLIPS)
def test_what_changes_the_answer_is_in_the_key(name, grad, found, launched):  # noqa: F811
    base, *flips = FLIPS[name]
    given = tensors_of("group norm", grad)
    for flip in flips:
        recipes.forget(), base(*given), base(*given)
        assert found[-1] is not None, "the call itself is not known"
        found.clear()
        first, second = flip(*given), flip(*given)
        assert [recipe is None for recipe in found] == [True, False]
        with ordinary():
            want = flip(*given)
        tensors = [
            [t for t in (made if isinstance(made, tuple) else (made,)) if isinstance(t, torch.Tensor)]
            for made in (first, second, want)
        ]
        assert are_equal(tensors[0], tensors[2]) and are_equal(tensors[1], tensors[2])
