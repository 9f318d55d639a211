"""Known calls of the other functions: unbatched ones, sequences in a row. What is looked up, and what is in the key."""

import pytest
import torch
from crowd import all_at_once
from test_recipes import conv, found, fused, nothing_is_known, operands, unaligned  # noqa: F401

import tritonconv
from tritonconv import check, launch, recipes, steps
from tritonconv.causal import check as causal_check
from tritonconv.causal import launch as causal_launch
from tritonconv.columns import check as columns_check
from tritonconv.deform import check as deform_check

pytestmark = pytest.mark.interpreter


def gradients(call, tensors):
    """The result, and the gradients of the tensors that require one, for a fixed gradient of the result."""
    y = call(*tensors)
    torch.manual_seed(1)
    leaves = [t for t in tensors if t is not None and t.requires_grad]
    return y, *torch.autograd.grad(y, leaves, torch.randn_like(y))


def are_equal(first, second):
    return all(torch.equal(p, q) and p.stride() == q.stride() for p, q in zip(first, second, strict=True))


# ---- unbatched -----------------------------------------------------------------------------------------------------------


def unbatched(grad=False):
    x, w, b = operands(grad=False)
    return [t.requires_grad_(grad) for t in (x[0].contiguous(), w, b)]


UNBATCHED = {
    "conv": conv,
    "transposed": lambda *t: tritonconv.conv_transpose2d(*t, 2, 1),
    "fused": lambda x, w, b: fused(x, w, b, residual=x.relu(), scale=b),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_an_unbatched_call_is_known(name, found, launched, monkeypatch):  # noqa: F811
    call, tensors = UNBATCHED[name], unbatched(True)
    first, _ = gradients(call, tensors), gradients(call, tensors)  # the gradients of a known call have keys of their own
    with torch.no_grad():
        want = call(*tensors)
    monkeypatch.setattr(check, "tensors", None)
    monkeypatch.setattr(launch, "prepare_call", None)
    assert are_equal(gradients(call, tensors), first)
    with torch.no_grad():
        assert torch.equal(call(*tensors), want) and torch.equal(want, first[0]) and want.dim() == 3


def test_an_unbatched_call_and_a_batch_of_one_are_two(found, launched):  # noqa: F811
    x, w, b = unbatched()
    for images in (x, x.unsqueeze(0), x, x.unsqueeze(0)):
        assert conv(images, w, b).dim() == images.dim()
    assert [recipe is None for recipe in found] == [True, True, False, False]


# ---- sequences in a row --------------------------------------------------------------------------------------------------

IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]], dtype=torch.int32)
TWICE = IDS.repeat_interleave(2, 1)
STARTS = torch.tensor([0, 3, 3, 7], dtype=torch.int32)


def row(grad=False, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(s, dtype=dtype).requires_grad_(grad) for s in ((1, 4, 8), (4, 3), (4,))]


def causal(x, w, b, **given):
    return tritonconv.causal_conv1d(x, w, b, "silu", **given)


@pytest.mark.parametrize("given", [{"seq_idx": IDS}, {"cu_seqlens": STARTS}], ids=["seq_idx", "cu_seqlens"])
def test_sequences_in_a_row_are_known(given, found, launched, monkeypatch):  # noqa: F811
    tensors = row(True)
    first = gradients(lambda *t: causal(*t, **given), tensors)
    with torch.no_grad():
        want = causal(*tensors, **given)
    monkeypatch.setattr(causal_check, "causal", None)
    monkeypatch.setattr(causal_launch, "prepare", None)
    assert are_equal(gradients(lambda *t: causal(*t, **given), tensors), first)
    with torch.no_grad():
        assert torch.equal(causal(*tensors, **given), want)


def test_second_derivatives_of_sequences_in_a_row(found, launched):  # noqa: F811
    x, w, b = row(True, torch.float64)
    made = []
    for _ in range(3):
        first = torch.autograd.grad(causal(x, w, b, seq_idx=IDS).square().sum(), (x, w), create_graph=True)
        made.append(torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, w)))
    assert found[-1] is not None and not torch.equal(first[0], made[0][0])
    assert all(torch.equal(p, q) for other in made[1:] for p, q in zip(made[0], other, strict=True))


@pytest.mark.parametrize("name", ["seq_idx", "cu_seqlens"])
def test_a_known_call_reads_the_numbers_of_this_call(name, found, launched):  # noqa: F811
    """Other numbers have the same key, and so have the same ones after they were changed in place."""
    tensors = row()
    one, other = (IDS, IDS.flip(1) * 0) if name == "seq_idx" else (STARTS, torch.tensor([0, 1, 2, 8], dtype=torch.int32))
    given = one.clone()
    results = [causal(*tensors, **{name: given}) for _ in range(2)]
    given.copy_(other)
    results.append(causal(*tensors, **{name: given}))
    assert found[-1] is not None and found[-2] is not None
    recipes.forget()
    assert torch.equal(results[2], causal(*tensors, **{name: other})) and not torch.equal(results[1], results[2])


def test_bad_bounds_of_a_known_call_are_refused(launched):
    tensors, given = row(), STARTS.clone()
    for _ in range(2):
        causal(*tensors, cu_seqlens=given)
    given[3] = 9
    with pytest.raises(ValueError, match="cu_seqlens must end at 8"):
        causal(*tensors, cu_seqlens=given)


@pytest.mark.parametrize(
    "other",
    [{}, {"seq_idx": TWICE[:, ::2]}, {"cu_seqlens": STARTS}, {"cu_seqlens": STARTS[1:] - 3}, {"seq_idx": IDS.long()}],
    ids=["none", "strides", "starts", "fewer", "dtype"],
)
def test_what_sequences_change_is_in_the_key(other, found, launched):  # noqa: F811
    tensors = row()
    for _ in range(2):
        causal(*tensors, seq_idx=IDS)
    assert found[-1] is not None
    found.clear()
    if "seq_idx" in other and other["seq_idx"].dtype == torch.int64:
        with pytest.raises(RuntimeError, match="int32"):
            causal(*tensors, **other)
        assert found == [None]
        return
    first, second = causal(*tensors, **other), causal(*tensors, **other)
    assert [recipe is None for recipe in found] == [True, False] and torch.equal(first, second)
    recipes.forget()
    assert torch.equal(causal(*tensors, **other), first)


# ---- threads -------------------------------------------------------------------------------------------------------------


def test_32_threads_at_once(launched):
    """Each with one of four calls, known and not."""
    image, sequences = [t[..., :2] if t.dim() == 3 else t for t in unbatched()], row()
    calls = (
        lambda: conv(*image),
        lambda: causal(*sequences, seq_idx=IDS),
        lambda: causal(*sequences, cu_seqlens=STARTS),
        lambda: tritonconv.unfold(image[0], 2),
    )
    want = [call() for call in calls]
    recipes.forget()

    def work(i):
        return all(torch.equal(calls[j % 4](), want[j % 4]) for j in (i, i + 1))

    assert all_at_once(work)


# ---- windows as columns --------------------------------------------------------------------------------------------------

IMAGE = torch.arange(40.0).view(1, 2, 4, 5)
COLUMNS = tritonconv.unfold(IMAGE, 2)
WINDOWS = {
    "unfold": (tritonconv.unfold, IMAGE, (2,)),
    "fold": (tritonconv.fold, COLUMNS, ((4, 5), 2)),
    "unfold, unbatched": (tritonconv.unfold, IMAGE[0], (2,)),
    "fold, unbatched": (tritonconv.fold, COLUMNS[0], ((4, 5), 2)),
    "unfold, copied": (lambda *given: tritonconv.unfold(*given, plan="fprop:unfold:64x4x4:pack-a"), IMAGE.mT, (2,)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_columns_are_known(name, found, launched, monkeypatch):  # noqa: F811
    call, source, given = WINDOWS[name]
    first = call(source, *given)
    for function in ("unfold", "fold"):
        monkeypatch.setattr(columns_check, function, None)
    again = call(source, *given)
    assert [recipe is None for recipe in found] == [True, False]
    assert torch.equal(first, again) and first.stride() == again.stride()


#: Other calls of `unfold` than `unfold(IMAGE, 2)`, and of `fold` than `fold(COLUMNS, (4, 5), 2)`.
OTHER = {
    "unfold": [
        (IMAGE, 3),
        (IMAGE, 2, 2),
        (IMAGE, 2, 1, 1),
        (IMAGE, 2, 1, 0, 2),
        (IMAGE.double(), 2),
        (IMAGE.mT.contiguous().mT, 2),
        (unaligned(IMAGE), 2),
        (IMAGE[..., :4], 2),
        (IMAGE[0], 2),
    ],
    "fold": [
        (COLUMNS, (5, 4), 2),
        (COLUMNS, (5, 6), 2, 2),
        (COLUMNS, (2, 3), 2, 1, 1),
        (COLUMNS, (6, 8), 2, 1, 0, 2),
        (COLUMNS, (3, 12), (2, 1), 2),
        (COLUMNS[:, :, :8].contiguous(), (3, 5), 2),
        (unaligned(COLUMNS), (4, 5), 2),
    ],
}


@pytest.mark.parametrize("name", OTHER)
def test_what_columns_hang_on_is_in_the_key(name, found, launched):  # noqa: F811
    call, source, given = WINDOWS[name]
    plan = {"unfold": "fprop:unfold:64x4x4", "fold": "dgrad:unfold:64x4x1"}[name]
    for arguments, words in (*((other, {}) for other in OTHER[name]), ((source, *given), {"plan": plan})):
        recipes.forget(), call(source, *given), found.clear()
        first, second = (call(*arguments, **words) for _ in range(2))
        assert [recipe is None for recipe in found] == [True, False], arguments[1:]
        recipes.forget()
        assert torch.equal(first, second) and torch.equal(call(*arguments, **words), first)


# ---- deformable convolutions ---------------------------------------------------------------------------------------------


def deformable():
    torch.manual_seed(0)
    shapes = (1, 4, 4, 5), (1, 8, 3, 4), (2, 4, 2, 2), (2,), (1, 4, 3, 4)
    return [torch.randn(shape) for shape in shapes]


def deform(x, offset, w, b, mask, **given):
    return tritonconv.deform_conv2d(x, offset, w, b, mask=mask, **given)


def replaced(i, change):
    return lambda *t: deform(*(change(each) if i == j else each for j, each in enumerate(t)))


def test_a_deformable_convolution_is_known(found, launched, monkeypatch):  # noqa: F811
    tensors = deformable()
    first = deform(*tensors)
    monkeypatch.setattr(deform_check, "call", None)
    tensors[1] *= 2  # read anew by a call of the same key
    known = deform(*tensors)
    assert [recipe is None for recipe in found] == [True, False] and not torch.equal(first, known)
    monkeypatch.undo()
    recipes.forget()
    cold = deform(*tensors)
    assert torch.equal(cold, known) and cold.stride() == known.stride()


DEFORMED = {
    "dtype": lambda *t: deform(*(each.double() for each in t)),
    "strides of x": replaced(0, lambda t: t.to(memory_format=torch.channels_last)),
    "strides of the offset": replaced(1, lambda t: t.mT.contiguous().mT),
    "alignment of w": replaced(2, unaligned),
    "no bias": replaced(3, lambda t: None),
    "no mask": replaced(4, lambda t: None),
    "padding": lambda x, o, w, b, m: deform(x, o.new_ones(1, 8, 5, 6), w, b, m.new_ones(1, 4, 5, 6), padding=1),
    "stride": lambda x, o, w, b, m: deform(x, o[..., :2, :2], w, b, m[..., :2, :2], stride=2),
    "dilation": lambda x, o, w, b, m: deform(x, o[..., :2, :3], w, b, m[..., :2, :3], dilation=2),
    "plan": lambda *t: deform(*t, plan="fprop:deform:16x16x16:w4:s1"),
}


@pytest.mark.parametrize("name", DEFORMED)
def test_what_a_deformable_convolution_hangs_on_is_in_the_key(name, found, monkeypatch):  # noqa: F811
    """Nothing is launched: only the look-ups matter, and what they find."""
    tensors = deformable()
    monkeypatch.setattr(launch.Launch, "run", None)
    monkeypatch.setattr(steps.Step, "start", lambda *_, **__: None)
    deform(*tensors), deform(*tensors)
    found.clear()
    first, second = (DEFORMED[name](*tensors) for _ in range(2))
    assert [recipe is None for recipe in found] == [True, False] and first.stride() == second.stride()


def test_windows_of_the_same_size_are_told_apart(found, launched):  # noqa: F811
    x, offset, w, b, mask = deformable()
    offset, mask = offset[:, :, :2].contiguous(), mask[:, :, :2].contiguous()
    for window in ({"stride": (2, 1)}, {"dilation": (2, 1)}, {"padding": (1, 0), "stride": (3, 1)}):
        made = [deform(x, offset, w, b, mask, **window) for _ in range(2)]
        recipes.forget()
        assert torch.equal(made[1], deform(x, offset, w, b, mask, **window))
        deform(x, offset, w, b, mask, stride=(2, 1))
    assert [recipe is None for recipe in found][:3] == [True, False, True]
