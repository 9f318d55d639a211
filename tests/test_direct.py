"""Launches repeated without Triton's binder, on compiled code: the same bits, the same kernel, and the ordinary launch where
somebody is to see it.

"Ordinary" are the launches that go through `JITFunction.run`.
"""

import contextlib
import gc
import weakref

import pytest
import torch
from test_compiled import ARCHS, GPU, executed, executor  # noqa: F401
from triton import knobs
from triton.runtime.jit import JITFunction

import tritonconv
from costmodel.tiling import Plan
from tritonconv import direct, launch, recipes
from tritonconv.causal import launch as causal
from tritonconv.columns import launch as columns
from tritonconv.deform import backward as gradients
from tritonconv.deform import launch as deform
from tritonconv.kernels.index import pack
from tritonconv.normalize import launch as normalize
from tritonconv.separable import launch as separable
from tritonconv.video import launch as video

pytest.importorskip("numba", reason="compiled code is not run: the executor needs numba")
pytestmark = pytest.mark.compiled
CL = torch.channels_last


@pytest.fixture(autouse=True)
def nothing_is_known():
    recipes.forget()
    caches = launch.prepare_call, causal.prepare, causal.step_of, causal.summing_step, causal.update_step
    others = columns.prepare, deform.prepare, gradients.columns_step, gradients.scatter_steps, gradients.weights_steps
    normal = normalize.prepare_apply, normalize.prepare_group
    for function in (*caches, *others, *normal, video.prepare, separable.prepare_call):
        function.cache_clear()


class Started:
    """The names of the kernels that were launched the ordinary way, and the hashes of all that were, in any way."""

    def __init__(self):
        self.ordinary, self.hashes = [], []

    def of(self, call):
        """What a call answers, and the hashes of its kernels."""
        self.hashes.clear()
        return call(), list(self.hashes)


@pytest.fixture
def started(monkeypatch):
    found, run, repeatable = Started(), JITFunction.run, direct.repeatable

    def count(self, *args, **kwargs):
        compiled = run(self, *args, **kwargs)
        found.ordinary.append(self.__name__)
        found.hashes.append(compiled.hash)
        return compiled

    def kept(kernel, compiled, *rest):
        repeat = repeatable(kernel, compiled, *rest)
        return lambda *args, **named: [found.hashes.append(compiled.hash), repeat(*args, **named)][0]

    monkeypatch.setattr(JITFunction, "run", count)
    monkeypatch.setattr(direct, "repeatable", kept)
    return found


@pytest.fixture
def ordinary(started):
    return started.ordinary


def operands(x=(1, 16, 6, 5), w=(16, 16, 3, 3), dtype=torch.float16, last=False):
    torch.manual_seed(0)
    tensors = torch.randn(x).to(dtype), torch.randn(w).to(dtype), torch.randn(w[0]).to(dtype)
    return tuple(t.to(memory_format=CL).requires_grad_() if last and t.dim() == 4 else t.requires_grad_() for t in tensors)


def step(call, *tensors):
    """The result of a call that records and its gradients."""
    y = call(*tensors)
    torch.manual_seed(1)
    gradients = torch.autograd.grad(y, tensors, torch.randn_like(y), allow_unused=True)
    return y.detach(), *(g for g in gradients if g is not None)


def conv(x, w, b, **arguments):
    return tritonconv.conv2d(x, w, b, padding=1, **arguments)


def normalised(x, w, b):
    """A prologue and an epilogue in one kernel, of tensors that record nothing."""
    prologue = tritonconv.Prologue(b.detach(), b.detach(), None, "silu")
    given = {"prologue": prologue, "residual": x.detach(), "plan": "fprop:padded:64x16x16:w4:s3:together"}
    y = tritonconv.conv2d_fused(x.detach(), w.detach(), b.detach(), 1, 1, **given)
    return y + 0 * conv(x, w, b)


def normalised_video(x, w, b):
    """Likewise of video."""
    prologue = tritonconv.Prologue(b.detach(), None, None, "silu")
    x5, w5 = x.detach().unsqueeze(2), w.detach().unsqueeze(2)
    given = {"prologue": prologue, "residual": x5, "return_cache": False, "plan": "fprop:video:64x16x16:w4:s3"}
    return tritonconv.causal_conv3d(x5, w5, b.detach(), 1, 1, **given).squeeze(2) + 0 * conv(x, w, b)


TMA = [Plan.parse(f"{which}:tma:64x32x32:w4:s3") for which in ("fprop", "dgrad", "wgrad")]
SPLIT = [Plan.parse(f"{which}:gather:32x16x16:w4:s3:split2") for which in ("fprop", "dgrad", "wgrad")]
NUMBERS = torch.arange(24).ge(9).int().expand(2, 24).contiguous()


def separated(x, w, b, plan):
    mixed = torch.eye(16).half()[..., None, None].to(memory_format=CL)
    return tritonconv.depthwise_separable_conv2d(x, w, mixed, b, None, 1, 1, activation="relu", plan=plan)


OFFSETS = torch.linspace(-2, 2, 18 * 30).view(1, 18, 6, 5).half()


def prologue_of_video(x, w, b):
    y, _ = tritonconv.causal_conv3d(x, w, b, padding=1, prologue=tritonconv.Prologue(b, b, None, "silu"))
    return y


#: What is called, on which tensors, and where.
CALLS = {
    "gather": (conv, {}, ARCHS),
    "channels-last": (conv, {"last": True}, ARCHS),
    "float32": (conv, {"dtype": torch.float32}, ARCHS),
    "split": (lambda *t: conv(*t, plan=SPLIT), {"x": (2, 32, 6, 5), "w": (32, 32, 3, 3)}, ARCHS),
    "depthwise": (lambda *t: conv(*t, groups=16), {"w": (16, 1, 3, 3)}, ARCHS),
    "transposed": (lambda *t: tritonconv.conv_transpose2d(*t, 2, 1), {}, ARCHS),
    "tma": (lambda *t: conv(*t, plan=TMA), {"x": (2, 32, 6, 5), "w": (32, 32, 3, 3), "last": True}, (90,)),
    "patch": (lambda *t: tritonconv.conv2d(*t), {"w": (16, 16, 1, 1), "last": True}, ARCHS),
    "fused": (lambda x, w, b: tritonconv.conv2d_fused(x, w, b, 1, 1, activation="silu", residual=x, scale=b), {}, ARCHS),
    "prologue": (normalised, {}, ARCHS),
    "video prologue": (normalised_video, {}, ARCHS),
    "causal": (lambda x, w, b: tritonconv.causal_conv1d(x, w, b, "silu"), {"x": (2, 16, 24), "w": (16, 4)}, ARCHS),
    "seq_idx": (lambda *t: tritonconv.causal_conv1d(*t, "silu", seq_idx=NUMBERS), {"x": (2, 16, 24), "w": (16, 4)}, (90,)),
    "unbatched": (conv, {"x": (16, 6, 5)}, (90,)),
    "video": (lambda *t: tritonconv.causal_conv3d(*t, padding=1)[0], {"x": (1, 16, 2, 4, 4), "w": (16, 16, 3, 3, 3)}, (90,)),
    "separable": (lambda x, w, b: separated(x, w, b, "fused"), {"w": (16, 1, 3, 3), "last": True}, (90,)),
    "deform": (lambda x, w, b: tritonconv.deform_conv2d(x, OFFSETS, w, b, 1, 1), {}, (90,)),
    "video, prologue": (prologue_of_video, {"x": (1, 16, 2, 4, 4), "w": (16, 16, 3, 3, 3)}, (90,)),
    "unfold": (lambda x, w, b: tritonconv.unfold(x, 3, 1, 1), {}, (90,)),
    "group norm": (lambda x, w, b: tritonconv.group_norm_prologue(x, 2, b, b).scale, {}, (90,)),
    # for no architecture: the first backward pass repeats a launch of the forward pass
    "separable, two": (lambda x, w, b: separated(x, w, b, "apart"), {"w": (16, 1, 3, 3), "last": True}, ()),
}
EACH = [pytest.param(arch, *row[:2], id=f"{name}-sm_{arch}") for name, row in CALLS.items() for arch in row[2]]


@pytest.mark.parametrize("arch, call, given", EACH)
def test_the_same_bits_as_the_ordinary_launch(arch, call, given, executed, ordinary):  # noqa: F811
    tensors = operands(**given)
    results, counts = [], []
    for _ in range(3):
        ordinary.clear(), executed.clear()
        results.append(step(call, *tensors))
        counts.append((len(ordinary), len(executed)))
    least = 2 if call in [CALLS[name][0] for name in ("causal", "unfold", "group norm")] else 3
    assert counts[0][0] == counts[0][1] == counts[2][1] >= least
    assert counts[2][0] == 0
    for later in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], later, strict=True))


@pytest.mark.parametrize("arch", ARCHS)
def test_an_update(arch, executed, ordinary):  # noqa: F811
    x, w, b = (t.detach() for t in operands((2, 16), (16, 4)))
    state, made = torch.randn(2, 16, 3).half(), []
    states = [state.clone() for _ in range(3)]
    for state in states:
        ordinary.clear()
        made.append(tritonconv.causal_conv1d_update(x, state, w, b, "silu"))
    assert not ordinary and all(
        torch.equal(made[0], m) and torch.equal(states[0], s) for m, s in zip(made, states, strict=True)
    )


# ---- what the compiler assumed -------------------------------------------------------------------------------------------


def unaligned(t):
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


@pytest.mark.parametrize("arch", [90])
@pytest.mark.parametrize("name", ["x", "w", "b", "residual", "scale"])
def test_alignment_of_each_tensor(name, executed, started):  # noqa: F811
    """A pointer that is no multiple of 16 bytes takes a kernel of its own, though all else is the same."""
    given = dict(zip(("x", "w", "b"), (t.detach() for t in operands()), strict=True))
    given |= {"residual": given["x"].clone(), "scale": given["b"].clone()}

    def call(x, w, b, residual, scale):
        return tritonconv.conv2d_fused(x, w, b, 1, 1, activation="relu", residual=residual, scale=scale)

    for _ in range(3):
        want, before = started.of(lambda: call(**given))
    other = given | {name: unaligned(given[name])}
    for _ in range(3):
        made, after = started.of(lambda: call(**other))
        assert torch.equal(made, want) and after != before
    made, again = started.of(lambda: call(**given))
    assert torch.equal(made, want) and again == before


@pytest.mark.parametrize("arch", [90])
def test_alignment_of_the_result(executed, started, monkeypatch):  # noqa: F811
    """An allocator may answer other addresses than torch's own do."""
    tensors = [t.detach() for t in operands()]
    for _ in range(3):
        want, before = started.of(lambda: conv(*tensors))
    allocate = torch.empty_strided
    monkeypatch.setattr(torch, "empty_strided", lambda *a, **k: unaligned(allocate(*a, **k)).as_strided(*a[:2]))
    made, after = started.of(lambda: conv(*tensors))
    assert made.data_ptr() % 16 and torch.equal(made, want) and after != before


#: Arguments of a launch that differ in what the compiler may assume of them.
TENSOR = torch.zeros(64)
KINDS = {
    "a tensor": TENSOR,
    "unaligned": TENSOR[1:],
    "float16": TENSOR.half(),
    "nothing": None,
    "1": 1,
    "True": True,
    "3": 3,
    "16": 16,
    "64 bits": 2**40 + 3,
    "64 bits, 16": 2**40,
    "unsigned": 2**63 + 3,
    "1.0": 1.0,
    "text": "3",
    "in a tuple": (TENSOR, 3),
    "in a tuple, unaligned": (TENSOR[1:], 3),
    "in a tuple, 16": (TENSOR, 16),
    "in a tuple, nothing": (None, 3),
}


def key_of(*values):
    from tritonconv.kernels.fprop import fprop_kernel

    return direct.key(fprop_kernel, frozenset(), values, {})


@pytest.mark.parametrize("arch", [90])
def test_the_key_tells_what_the_compiler_assumes(executor):  # noqa: F811
    keys = {name: key_of(value) for name, value in KINDS.items()}
    assert len(set(keys.values())) == len(keys)
    assert key_of(5) == key_of(3) and key_of(32) == key_of(16) and key_of(TENSOR[4:]) == key_of(TENSOR)
    assert key_of(pack(7)) == key_of(pack(8)), "packed numbers are all alike"
    assert key_of(TENSOR, None) != key_of(None, TENSOR)


def test_each_architecture_has_its_own_kernel(ordinary):
    """One device model, two current devices of Triton."""
    from bench.executor import driver
    from tritonconv import host

    tensors, found = [t.detach() for t in operands()], {}
    try:
        for arch in (80, 90, 80, 90):
            installed = driver.install(arch)
            host.use(GPU[90])
            conv(*tensors)
            targets = []
            installed.listeners.append(lambda launched: targets.append(launched.ptx.partition(".target ")[2][:5]))  # noqa: B023
            made = conv(*tensors)
            assert targets == [f"sm_{arch}"]
            assert torch.equal(made, found.setdefault(arch, made))
    finally:
        host.use(None)
        driver.uninstall()
    assert len(ordinary) == 2


@pytest.mark.parametrize("arch", [90])
def test_compiled_code_is_kept_as_long_as_it_is_repeated(executed, monkeypatch):  # noqa: F811
    """Triton's caches may be emptied meanwhile; 3.8 and newer unload a kernel that nobody holds."""
    from tritonconv.kernels.fprop import fprop_kernel

    kept, repeatable = [], direct.repeatable
    monkeypatch.setattr(direct, "repeatable", lambda *given: [repeatable(*given), kept.append(weakref.ref(given[1]))][0])
    tensors = [t.detach() for t in operands()]
    want = conv(*tensors)
    fprop_kernel.device_caches.clear()
    gc.collect()
    assert kept[0]() is not None and torch.equal(conv(*tensors), want) and len(kept) == 1


# ---- who is to see a launch ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hooked(seen):
    knobs.runtime.launch_enter_hook.add(seen.append)
    yield
    knobs.runtime.launch_enter_hook.remove(seen.append)


@contextlib.contextmanager
def hooked_behind(seen):
    knobs.runtime.launch_exit_hook.add(seen.append)
    yield
    knobs.runtime.launch_exit_hook.remove(seen.append)


@contextlib.contextmanager
def debugged(seen):
    with knobs.runtime.scope():
        knobs.runtime.debug = True
        yield


@contextlib.contextmanager
def instrumented(seen):
    with knobs.compilation.scope():
        knobs.compilation.instrumentation_mode = "none"
        yield


@contextlib.contextmanager
def inspected(seen):
    before = knobs.runtime.add_stages_inspection_hook

    def inspect(*args):
        made = before(*args)
        return ("other", "other") if made else made

    knobs.runtime.add_stages_inspection_hook = inspect
    yield
    knobs.runtime.add_stages_inspection_hook = before


@contextlib.contextmanager
def before_each_run(seen):
    from tritonconv.kernels.fprop import fprop_kernel

    fprop_kernel.add_pre_run_hook(lambda *a, **k: seen.append(a))
    yield
    fprop_kernel.pre_run_hooks.clear()


@pytest.mark.parametrize("arch", [90])
@pytest.mark.parametrize("way", [hooked, hooked_behind, debugged, instrumented, inspected, before_each_run])
def test_the_ordinary_launch_where_somebody_looks(way, executed, executor, ordinary):  # noqa: F811
    tensors, seen = [t.detach() for t in operands()], []
    for _ in range(3):
        want = conv(*tensors)
    ordinary.clear()
    with way(seen):
        executor.skipped = [] if way is debugged else None  # the executor knows no printing instruction
        made = conv(*tensors)
        executor.skipped = None
    assert ordinary == ["fprop_kernel"] and (way is debugged or torch.equal(made, want))
    assert len(seen) == (way in (before_each_run,)) or way in (hooked, hooked_behind)
    conv(*tensors)
    assert ordinary == ["fprop_kernel"]
