"""Known calls that autograd records, of the functions that got their recipes last, and the look-ups of their gradients."""

import contextlib
import gc
import weakref

import pytest
import torch
from crowd import all_at_once
from test_recipes import found, nothing_is_known, unaligned  # noqa: F401

import tritonconv
from costmodel import deform_backward as portions
from tritonconv import recipes

pytestmark = pytest.mark.interpreter
LAST = torch.channels_last_3d


def random(*shapes, dtype=torch.float32):
    torch.manual_seed(0)
    made = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [t.to(memory_format=LAST) if t.dim() == 5 else t for t in made]


def deform(x, offset, w, b, mask):
    return tritonconv.deform_conv2d(x, offset, w, b, mask=mask)


def video(x, w, b, cache, residual, scale, **given):
    prologue = tritonconv.Prologue(scale, scale, None, "silu")
    return tritonconv.causal_conv3d(x, w, b, 1, (0, 1), cache, prologue=prologue, residual=residual, **given)


def strided(t):
    return torch.stack([t, t], -1)[..., 0]


#: A call and the shapes of its tensors.
CALLS = {
    "unfold": (lambda x: tritonconv.unfold(x, (2, 1), padding=1), [(2, 2, 3, 2)]),
    "unfold, unbatched": (lambda x: tritonconv.unfold(x, (2,)), [(2, 4)]),
    "fold": (lambda y: tritonconv.fold(y, (3, 3), 2), [(2, 4, 4)]),
    "fold, unbatched": (lambda y: tritonconv.fold(y, (3, 3), 2), [(4, 4)]),
    "deform": (deform, [(1, 2, 2, 3), (1, 4, 2, 2), (2, 2, 1, 2), (2,), (1, 2, 2, 2)]),
    "deform, version 1": (lambda *t: tritonconv.deform_conv2d(*t, padding=(0, 1)), [(1, 2, 2, 2), (1, 4, 2, 3), (2, 1, 1, 2)]),
    "prologue": (
        lambda x, a, b, r: tritonconv.Prologue(a, b, r, "silu")(x),
        [(1, 2, 2, 1, 3), (2,), (1, 2, 2), (1, 2, 1, 3)],
    ),
    "prologue of an image": (lambda x, a: tritonconv.Prologue(a, None, None, "relu")(x), [(1, 2, 2, 3), (1, 2)]),
    "strided prologue": (lambda x, a: tritonconv.Prologue(strided(a))(x), [(1, 2, 1, 2, 2), (2,)]),
    "group norm": (lambda x, w, b: tritonconv.group_norm_prologue(x, 2, w, b)[:2], [(2, 4, 2, 1, 2), (4,), (4,)]),
    "group norm of frames": (
        lambda x: tritonconv.group_norm_prologue(x, 1, per_frame=True)[:2],
        [(2, 2, 2, 1, 3)],
    ),
    "group norm of an image": (lambda x, w: tritonconv.group_norm_prologue(x, 1, w)[:2], [(1, 2, 2, 2), (2,)]),
    "rms norm": (lambda x: tritonconv.rms_norm_prologue(x).rstd, [(2, 2, 2, 1, 2)]),
    "rms norm of a sequence": (lambda x: tritonconv.rms_norm_prologue(x, eps=1e-3).rstd, [(1, 2, 3)]),
    "video": (video, [(1, 2, 2, 1, 2), (2, 2, 2, 1, 3), (2,), (1, 2, 1, 1, 2), (1, 2, 2, 1, 2), (2,)]),
    "video, upsample": (
        lambda x, w, s: tritonconv.causal_conv3d(x, w, None, 1, 1, upsample=2, prologue=tritonconv.Prologue(s, s))[0],
        [(1, 2, 1, 1, 2), (2, 2, 1, 3, 3), (2,)],
    ),
}
#: Each call with every one of its tensors alone.
ALONE = [pytest.param(name, i, id=f"{name}-{i}") for name, (_, shapes) in CALLS.items() for i in range(len(shapes))]
SECOND = ["unfold", "fold, unbatched", "deform, version 1", "prologue", "group norm", "group norm of frames", "rms norm"]


def tensors_of(name, grad=True, dtype=torch.float32):
    return [t.requires_grad_(grad) for t in random(*CALLS[name][1], dtype=dtype)]


def results(call, tensors):
    made = call(*tensors)
    return made if isinstance(made, tuple) else (made,)


def stepped(call, tensors):
    """The results and the gradients of all tensors that require one, for fixed gradients of the results."""
    made = [t for t in results(call, tensors) if t.requires_grad]
    torch.manual_seed(1)
    given = [torch.randn_like(t) for t in made]
    leaves = [t for t in tensors if t.requires_grad]
    return [*made, *torch.autograd.grad(made, leaves, given, allow_unused=True)]


@contextlib.contextmanager
def ordinary():
    """Nothing is looked up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "key", lambda *_: None)
        yield


def are_equal(first, second):
    """Whether two lists hold the same bits in the same layout."""
    pairs = list(zip(first, second, strict=True))
    return all(p is q is None or (torch.equal(p, q) and p.stride() == q.stride()) for p, q in pairs)


def never(*_, **__):
    raise AssertionError("an op was called")


OPS = (
    *("unfold", "fold", "deform", "deform_backward", "normalize", "group_scale", "rms_rstd", "video"),
    *("fprop", "dgrad", "wgrad"),
)


@pytest.fixture
def without_ops(monkeypatch):
    """A function after whose call no op of this package may be called."""

    def forbid():
        for name in OPS:
            monkeypatch.setattr(torch.ops.tritonconv, name, never)
        from tritonconv.columns import op

        for function in (op._Unfold, op._Fold):  # they hold their op
            monkeypatch.setattr(function, "op", never)

    return forbid


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_and_its_gradients_are_the_ordinary_ones(name, found, launched, without_ops):  # noqa: F811
    call, given = CALLS[name][0], tensors_of(name)
    with ordinary():
        want = stepped(call, given)
    for _ in range(2):  # the gradients of a known call may have keys of their own
        assert are_equal(stepped(call, given), want)
    found.clear(), without_ops()
    assert are_equal(stepped(call, given), want)
    assert found and None not in found


@pytest.mark.parametrize("name, i", ALONE)
def test_a_gradient_alone(name, i, found, launched, without_ops):  # noqa: F811
    """Which tensors require a gradient is in the key: of a call that is known with all of them, and that records nothing."""
    call, given = CALLS[name][0], tensors_of(name)
    stepped(call, given), stepped(call, given)
    with torch.no_grad():
        call(*given), call(*given)
    alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(given)]
    with ordinary():
        want = stepped(call, alone)
    found.clear()
    assert are_equal(stepped(call, alone), want) and (found[0] is None or len(given) == 1)
    stepped(call, alone), without_ops(), found.clear()
    assert are_equal(stepped(call, alone), want) and found and None not in found


@pytest.mark.parametrize("name", [*SECOND, "video"])
def test_second_derivatives_of_a_known_call(name, found, launched):  # noqa: F811
    call, given = CALLS[name][0], tensors_of(name, dtype=torch.float64)
    stepped(call, given), stepped(call, given)
    found.clear()
    if name == "video":
        given[4].requires_grad_(False)  # the residual is added, so that its second derivative is that of nothing
    made = results(call, given)
    dy = [torch.randn_like(t).requires_grad_() for t in made]
    leaves = [t for t in given if t.requires_grad]
    torch.autograd.grad(made, leaves, dy, create_graph=True, allow_unused=True)  # if it kept anything, the check finds that
    assert torch.autograd.gradgradcheck(lambda *t: results(call, t), given, fast_mode=True)
    assert any(recipe is not None for recipe in found)


def raises(edited, call, given):
    """Whether a backward pass refuses that a tensor was changed after it was saved."""
    copies = [t * 1 for t in given]
    made = results(call, copies)
    copies[edited].add_(1)
    try:
        torch.autograd.grad([t for t in made if t.requires_grad], given, [t.detach() for t in made if t.requires_grad],
                            allow_unused=True)  # fmt: skip
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return True
    return False


#: Of each call, the tensors that its gradients read.
SAVED = {
    "unfold": [],
    "fold": [],
    "deform": [0, 1, 2, 4],
    "prologue": [0, 1, 2, 3],
    "group norm": [0, 1, 2],
    "rms norm": [0],
    "video": [0, 1, 3, 5],
}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_tensor_that_was_changed_is_refused(name, found, launched):  # noqa: F811
    call, given = CALLS[name][0], tensors_of(name)
    with ordinary():
        want = [i for i in range(len(given)) if raises(i, call, given)]
    for _ in range(2):
        results(call, [t * 1 for t in given])
    found.clear()
    assert [i for i in range(len(given)) if raises(i, call, given)] == want == SAVED[name]
    assert found[0] is not None


@pytest.mark.parametrize("name", SAVED)
def test_a_graph_that_is_kept_or_freed(name, launched):
    """A second backward pass through a known call has the same bits, and is refused where the graph was freed."""
    call, given = CALLS[name][0], tensors_of(name)
    stepped(call, given), stepped(call, given)
    made = [t for t in results(call, given) if t.requires_grad]
    dy = [torch.ones_like(t) for t in made]
    first, second = (torch.autograd.grad(made, given, dy, retain_graph=kept, allow_unused=True) for kept in (True, False))
    assert are_equal(first, second)
    if SAVED[name]:
        with pytest.raises(RuntimeError, match="a second time"):
            torch.autograd.grad(made, given, dy, allow_unused=True)


@pytest.mark.parametrize("name", SAVED)
def test_hooks_of_a_known_call(name, found, launched):  # noqa: F811
    """Hooks of tensors see and change gradients, and hooks of saved tensors see as many as in the ordinary way."""
    call, given, seen = CALLS[name][0], tensors_of(name), []

    def hooked():
        packed = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
            made = [t for t in results(call, given) if t.requires_grad]
        made[0].register_hook(lambda g: seen.append(g.shape) or 2 * g)
        made[0].grad_fn.register_hook(lambda *_: seen.append("node"))
        return packed, torch.autograd.grad(made, given, [torch.ones_like(t) for t in made], allow_unused=True)

    with ordinary():
        packed, want = hooked()
    for _ in range(3):
        found.clear(), seen.clear()
        again, gradients = hooked()
        assert again == packed and are_equal(gradients, want) and len(seen) == 2
    assert found and found[0] is not None


@pytest.mark.parametrize("name", ["unfold", "fold", "deform", "video", "prologue"])
def test_what_a_gradient_hangs_on_is_in_its_key(name, found, launched):  # noqa: F811
    """The layout and the address of the gradient that arrives at a known call."""
    call, given = CALLS[name][0], tensors_of(name)
    stepped(call, given), stepped(call, given)
    y = results(call, given)[0]
    torch.manual_seed(2)
    dy = torch.randn_like(y)
    others = {
        "the same": dy,
        "expanded": dy.flatten()[0].expand(y.shape),
        "strided": strided(dy),
        "other axes": dy.transpose(0, -1).contiguous().transpose(0, -1),
        "unaligned": unaligned(dy.contiguous()),
    }
    for arrived in others.values():
        found.clear()
        made = [torch.autograd.grad(y, given, arrived, retain_graph=True, allow_unused=True) for _ in range(2)]
        assert not found or found[-1] is not None  # a prologue's gradient is made of torch's operators
        with ordinary():
            want = torch.autograd.grad(y, given, arrived, retain_graph=True, allow_unused=True)
        assert are_equal(made[0], want) and are_equal(made[1], want)


def test_each_layout_of_a_gradient_has_its_own_recipe(found, launched):  # noqa: F811
    call, given = CALLS["deform"][0], tensors_of("deform")
    y = call(*given)
    dy, seen = torch.randn_like(y), []
    for arrived in (dy, strided(dy), unaligned(dy), dy.sum().expand(y.shape)):
        found.clear()
        for _ in range(2):
            torch.autograd.grad(y, given, arrived, retain_graph=True)
        seen.append([recipe is None for recipe in found])
    assert seen == [[True, False]] * 4


def test_a_gradient_that_is_recorded_itself_takes_the_ordinary_way(found, launched):  # noqa: F811
    """With create_graph the gradient's own op records, and no recipe is kept for it or found."""
    for name in ("unfold", "fold", "deform"):
        call, given = CALLS[name][0], tensors_of(name)
        stepped(call, given), stepped(call, given)
        y = call(*given)
        found.clear()
        for _ in range(2):
            (first, *_) = torch.autograd.grad(y, given, torch.ones_like(y).requires_grad_(), create_graph=True)
            assert first.requires_grad
        assert found and all(recipe is None for recipe in found)


def test_portions_of_a_batch_are_known(found, launched, without_ops, monkeypatch):  # noqa: F811
    """The gradient of a deformable convolution's input, an image at a time."""
    shapes = [(3, *shape[1:]) if i in (0, 1, 4) else shape for i, shape in enumerate(CALLS["deform"][1])]
    given = [t.requires_grad_() for t in random(*shapes)]
    want = stepped(deform, given)
    monkeypatch.setattr(portions, "WORKSPACE", 1)
    recipes.forget()
    for _ in range(2):
        stepped(deform, given)
    without_ops(), found.clear()
    assert are_equal(stepped(deform, given), want)
    assert None not in found and len(found[-1].arranged.parts) == 3


def test_an_allocator_with_other_addresses(found, launched, monkeypatch):  # noqa: F811
    """The convolution behind a prologue is planned for normalised frames on a multiple of 32 bytes."""
    given = tensors_of("video")
    want = [stepped(video, given) for _ in range(2)][1]
    allocate, called = torch.empty_strided, []

    def odd(shape, strides, **kind):
        return unaligned(allocate(shape, strides, **kind)).as_strided(shape, strides)

    op = torch.ops.tritonconv.video
    monkeypatch.setattr("tritonconv.video.again._OPS.video", lambda *t: called.append(t[0].data_ptr() % 32) or op(*t))
    monkeypatch.setattr(torch, "empty_strided", odd)
    found.clear()
    made = video(*given)
    assert found[0] is not None and called and all(called)
    assert are_equal(made, want[:2])


@pytest.mark.parametrize("name", SAVED)
def test_no_tensor_is_kept(name, launched):
    """Neither by a recipe nor by a backward pass that is over."""
    call, given = CALLS[name][0], tensors_of(name)
    for _ in range(3):
        made = stepped(call, given)
    held = [weakref.ref(t) for t in (*given, *made) if t is not None]
    del given, made
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


def test_32_threads_at_once(launched):
    """Each with one of four calls and its gradients, known and not."""
    names = ["unfold, unbatched", "fold, unbatched", "deform, version 1", "group norm of an image"]
    given = [tensors_of(name, False) for name in names]

    def step(i):
        return stepped(CALLS[names[i]][0], [t.clone().requires_grad_() for t in given[i]])

    want = [step(i) for i in range(4)]
    recipes.forget()

    def work(i):
        return all(are_equal(step(j % 4), want[j % 4]) for j in (i, i + 1))

    assert all_at_once(work)
