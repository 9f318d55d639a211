"""Plans: their words, what makes one legal, and that the arithmetic prefers what it should."""

import pickle
from dataclasses import fields, replace

import pytest

import costmodel.families.matrix_choice
from costmodel.device import DEVICES, INTERPRETER, find, find_device
from costmodel.families import depthwise, plan_class
from costmodel.families.gemm import MENU
from costmodel.families.matrix import grid, reduction_step, reduction_steps, resources_of, row_align, trips, vector_widths
from costmodel.families.matrix_choice import compiled
from costmodel.families.matrix_time import extra_bytes
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.resources import Resources, compiled_for, resource_key, resource_table
from costmodel.tiling import Call, Operand, Plan, Tile, arithmetic

H200 = DEVICES["NVIDIA H200"]


def conv(n=64, c=128, size=28, k=128, kernel=3, stride=1, padding=1, groups=1):
    return ConvProblem.conv((n, c, size, size), (k, c // groups, kernel, kernel), (stride,) * 2, (padding,) * 2, (1, 1), groups)


@pytest.mark.parametrize(
    "text",
    [
        "fprop:gather:128x256x64:w8:s3",
        "dgrad:patch:64x64x32:w4:s4:group4:pack-a:pack-b",
        "wgrad:gather:128x128x64:w8:s3:split7:step1x1x8x8",
    ],
)
def test_a_plan_reads_back_from_its_words(text):
    assert str(Plan.parse(text)) == text


@pytest.mark.parametrize("text", ["", "fprop", "fprop:gather:128x64", "sprop:gather:1x1x1", "fprop:gather:16x16x16:z3"])
def test_words_that_are_no_plan_are_refused(text):
    with pytest.raises(ValueError, match="plan"):
        Plan.parse(text)


@pytest.mark.parametrize("device", [H200, INTERPRETER, DEVICES["NVIDIA A100-SXM4-80GB"], DEVICES["NVIDIA B200"]])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("which", list(Pass))
@pytest.mark.parametrize("operand", [Operand(), Operand(4, 1), Operand(-1, 1)])
def test_every_call_has_a_plan_that_neither_spills_nor_overflows_shared_memory(device, dtype, which, operand):
    for problem in (conv(), conv(kernel=1, padding=0), conv(c=3, k=5, stride=2), conv(groups=128), conv(n=1, size=7)):
        for precision in ("ieee", "tf32"):
            call = Call(problem, which, dtype, precision, operand, operand, operand)
            plan = select(call, device)
            if device.interpreted:
                continue
            if plan.family == "depthwise":
                assert depthwise.registers(call, plan) <= depthwise.max_registers(call, device)
                continue
            needs = resources_of(call, plan, device)
            assert needs is not None and needs.spills == 0 and needs.shared <= device.shared_per_block


WORDS = (
    "fprop:gather:64x64x32:w4:s4:split2:group4:merge2:fold:x3:pack-a:pack-b",
    "wgrad:patch:64x64x32:w8:s3:split7:step1x1x8x4",
    "dgrad:tma:64x64x32:w4:s4:step2x1x4x8:merge4:pack-b",
    "dgrad:depthwise:4x8x1:w1:s3:rows4:taps1x8:pack-b",
    "wgrad:band:32x64x16:w4:s3:split2:step1x1x2x16:rows2",
    "fprop:video:16x16x16:w4:s3:group2",
    "fprop:separable:64x64x64:w4:s3:step1x1x2x2:pack-b",
)


@pytest.mark.parametrize("words", WORDS)
def test_a_plan_is_of_its_familys_class_and_reads_back(words):
    plan = Plan.parse(words)
    which, family, *_ = words.split(":")
    assert str(plan) == words and (plan.which, plan.family) == (which, family)
    assert type(plan) is plan_class(family) and pickle.loads(pickle.dumps(plan)) == plan
    assert Plan.parse(str(replace(plan, num_stages=1))) == replace(plan, num_stages=1)
    assert Plan(**{field.name: getattr(plan, field.name) for field in fields(plan) if field.init}) == plan


@pytest.mark.parametrize(
    "words, says",
    [
        ("fprop:gather:64x64x32:rows2", "family 'gather' knows no rows, got 2"),
        ("fprop:tma:64x64x64:x3", "family 'tma' knows no x3, got True"),
        ("fprop:depthwise:4x8x1:merge2", "family 'depthwise' knows no merge, got 2"),
        ("fprop:band:16x64x32:w4:s3:step1x1x4x16:merge2", "family 'band' knows no merge, got 2"),
        ("fprop:separable:64x64x64:step1x1x2x2:split2", "family 'separable' knows no split, got 2"),
        ("fprop:video:64x64x64:w4:s3:merge2", "family 'video' knows no merge, got 2"),
        ("fprop:fft:64x64x64", "there is no family 'fft', there are gather, patch, tma"),
        ("fprop:gather:64x64x32:step8x8", "is not of the form"),
        ("fprop:gather:64x64", "is not of the form"),
        ("sideways:gather:64x64x32", "is not of the form"),
        ("fprop:gather:64x64x32:w", "is not of the form"),
    ],
)
def test_words_that_are_no_plan(words, says):
    with pytest.raises(ValueError, match=says):
        Plan.parse(words)


def test_a_family_reads_its_own_plans_alone():
    assert type(plan_class("gather").parse("fprop:patch:64x64x32")) is plan_class("patch")
    with pytest.raises(ValueError, match="must be a TmaPlan, got a GatherPlan"):
        plan_class("tma").parse("fprop:gather:64x64x32")
    with pytest.raises(TypeError, match="a plan of family 'patch' is a PatchPlan, not a GatherPlan"):
        replace(Plan.parse("fprop:gather:64x64x32"), family="patch")


def test_a_tile_that_spills_or_is_unknown_is_no_candidate(monkeypatch):
    call = Call(conv(), Pass.FPROP, "float16")
    free = candidates(call, H200)
    best = select(call, H200)
    key = resource_key(best, "half", "wide", 90)
    table = dict(resource_table())
    for broken in (table[key]._replace(spills=1), table[key]._replace(shared=H200.shared_per_block + 1), None):
        changed = {k: v for k, v in (table | {key: broken}).items() if v is not None}
        monkeypatch.setattr(costmodel.families.matrix_choice, "resource_table", lambda changed=changed: changed)
        compiled.cache_clear()
        assert best in free and best not in candidates(call, H200)
    compiled.cache_clear()


def test_every_tile_of_the_menu_is_in_the_table():
    for kind, tiles in MENU.items():
        for tile in tiles:
            for which in Pass:
                plan = Plan(which, "gather", *tile)
                for arch in (80, 90, 100):
                    assert resource_key(plan, kind, "wide", arch) in resource_table()


@pytest.mark.parametrize("device", [H200, INTERPRETER, DEVICES["NVIDIA A100-SXM4-80GB"]])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("which", list(Pass))
def test_the_choice_is_the_candidate_of_least_predicted_time(device, dtype, which):
    """`select` skips and shares work; ranking every candidate by `predict` must name the same time."""
    problems = conv(), conv(kernel=1, padding=0), conv(c=3, k=5, stride=2), conv(n=1, size=7), conv(n=256, c=64, size=56)
    for problem in (*problems, conv(c=4096, k=4096, size=8), conv(n=8, c=512, k=512, size=128)):
        for operand in (Operand(), Operand(4, 16)):
            call = Call(problem, which, dtype, "ieee", operand, operand, operand)
            chosen = predict(call, select(call, device), device).seconds
            assert chosen == min(predict(call, plan, device).seconds for plan in candidates(call, device))


def test_few_programs_have_more_of_the_cache_each():
    """With half the multiprocessors at work, each draws twice its share of L2."""
    call = Call(conv(), Pass.FPROP, "float16")
    plan = Plan.parse("fprop:gather:128x128x64:w8:s3")
    busy, half = (predict(replace(call, problem=conv(n=n, c=512, k=512, size=16)), plan, H200) for n in (16, 8))
    assert (busy.tiles, half.tiles, busy.bound, half.bound) == (128, 64, "L2", "L2")
    assert half.seconds < 0.75 * busy.seconds


def test_architectures_that_are_not_compiled_borrow_and_say_so():
    assert [compiled_for(c) for c in (70, 80, 86, 89, 90, 100, 103, 120)] == [80, 80, 80, 80, 90, 100, 100, 80]
    call = Call(conv(), Pass.FPROP, "float16")
    ada = find_device("rtx4090")
    assert "compiled for sm_80" in predict(call, select(call, ada), ada).source
    assert "compiled for" not in predict(call, select(call, H200), H200).source


def test_a_prediction_is_never_under_the_roofline():
    for problem in (conv(), conv(kernel=1, padding=0), conv(n=1, size=7), conv(n=256, c=64, size=56), conv(c=512, k=512)):
        for which in Pass:
            call = Call(problem, which, "float16")
            for plan in candidates(call, H200):
                found = predict(call, plan, H200)
                assert found.seconds >= max(2 * problem.useful_macs / H200.rate("float16"), problem.bytes(2, which) / 4.8e12)
                assert found.low < found.seconds < found.high and "uncalibrated" in found.source


def test_operands_too_large_for_the_cache_are_read_again():
    weights = Call(conv(n=256, c=4096, k=4096, size=14), Pass.FPROP, "float16")  # 302 MB of weights
    chosen = select(weights, H200)
    assert predict(weights, chosen, H200).bytes > 2 * weights.problem.bytes(2)
    small = Call(conv(n=256, c=256, k=256, size=14), Pass.FPROP, "float16")
    assert predict(small, select(small, H200), H200).bytes == small.problem.bytes(2)
    pixels = Call(conv(n=64, c=2048, k=2048, size=28), Pass.WGRAD, "float16")  # 411 MB of activations, 2304 tiles
    whole = Plan.parse("wgrad:gather:128x128x64:w8:s3:step1x1x8x8")

    def again(plan):
        return predict(pixels, plan, H200).bytes - pixels.problem.bytes(2) - extra_bytes(pixels, plan)

    assert again(whole) > 5 * pixels.problem.bytes(2)
    assert again(replace(whole, split=32)) == 0  # a slice of the pixels stays in the cache


def test_few_tiles_split_the_reduction_and_many_do_not():
    deep = select(Call(conv(n=64, c=128, k=128), Pass.WGRAD, "float16"), H200)
    assert deep.split > 1
    wide = select(Call(conv(n=1, c=2048, k=2048, size=7), Pass.WGRAD, "float16"), H200)
    assert wide.split == 1


def test_narrow_outputs_get_narrow_tiles():
    assert select(Call(conv(k=16), Pass.FPROP, "float16"), H200).block_n <= 32
    assert select(Call(conv(k=1024), Pass.FPROP, "float16"), H200).block_n >= 64


def test_a_large_contiguous_input_is_copied_to_channels_last_and_the_bytes_are_counted():
    contiguous = Call(conv(c=256, k=256), Pass.FPROP, "float16", a=Operand(4, 4), b=Operand(4, 1))
    chosen = select(contiguous, H200)
    assert set(chosen.pack) == {"a", "b"}
    problem = contiguous.problem
    weights = 256 * 256 * 9
    assert extra_bytes(contiguous, chosen) == 2 * 2 * (64 * 256 * 28 * 28 + weights)
    assert predict(contiguous, chosen, H200).bytes == problem.bytes(2) + extra_bytes(contiguous, chosen)
    assert "a" not in select(replace(contiguous, a=Operand()), H200).pack


def test_grid_and_trips():
    problem = conv(n=2, c=64, k=96, size=9, stride=2)
    fprop = Plan(Pass.FPROP, "gather", 64, 64, 32, 4, 3)
    assert grid(problem, fprop) == (1, 2, 1) and trips(problem, fprop) == 2 * 9
    dgrad = Plan(Pass.DGRAD, "gather", 64, 64, 32, 4, 3)
    assert grid(problem, dgrad) == (1, 1, 4) and trips(problem, dgrad) == 3 * 9 / 4
    wgrad = Plan(Pass.WGRAD, "gather", 64, 64, 16, 4, 3, split=2, step=(1, 1, 2, 8))
    assert grid(problem, wgrad) == (2, 1, 18) and trips(problem, wgrad) == 3


def test_wgrads_box_wastes_least():
    assert reduction_step(conv(n=256, size=7), 64) == (64, 1, 1, 1)
    assert reduction_step(conv(n=1, size=56), 64) == (1, 1, 8, 8)
    problem = ConvProblem.conv((2, 4, 100), (4, 4, 3), (1,), (1,), (1,))
    step = reduction_step(problem, 32)
    assert step[0] * step[1] * step[2] * step[3] == 32
    assert reduction_steps(problem, step) == min(-(-2 // n) * -(-100 // q) for n, q in ((1, 32), (2, 16)))


def test_vector_widths_follow_the_axis_of_stride_one():
    plan = Plan(Pass.FPROP, "gather", 128, 128, 64, 8, 3)
    assert vector_widths(Call(conv(), Pass.FPROP, "float16"), plan) == (8, 8)
    assert vector_widths(Call(conv(c=20), Pass.FPROP, "float16"), plan) == (4, 4)
    assert vector_widths(Call(conv(), Pass.FPROP, "float16", a=Operand(4, 8)), plan) == (1, 8)
    assert vector_widths(Call(conv(), Pass.FPROP, "float16", a=Operand(4, 8)), replace(plan, pack=("a",))) == (8, 8)
    patch = Plan(Pass.FPROP, "patch", *plan.tile)
    embedding = conv(c=3, size=32, kernel=16, stride=16, padding=0)
    assert vector_widths(Call(embedding, Pass.FPROP, "float16", a=Operand(4, 16), b=Operand(4, 16)), patch) == (8, 8)


def test_arithmetic_and_devices():
    assert [arithmetic(d, "tf32") for d in ("float16", "float32", "float64")] == ["half", "tf32", "fp64"]
    assert find("NVIDIA H200", 90, 132) is H200
    unknown = find("NVIDIA H999", 90, 66)
    assert unknown.sm_count == 66 and unknown.fp16 == pytest.approx(H200.fp16 / 2)
    assert isinstance(resource_table(), dict) and all(isinstance(r, Resources) for r in resource_table().values())
    assert all(isinstance(t, Tile) for tiles in MENU.values() for t in tiles)


def test_a_row_of_pixels_is_read_at_once_where_vectors_divide_it():
    """As the kernels are told (`row_align`): a model that claims more picks plans whose loads are then a pixel each."""
    contiguous = Operand(4, 16)
    plan = Plan(Pass.DGRAD, "patch", 128, 64, 64, 4, 4)
    for size, width in ((56, 8), (28, 1), (7, 1)):
        for which in (Pass.FPROP, Pass.DGRAD):
            call = Call(conv(size=size, kernel=1, padding=0), which, "bfloat16", a=contiguous)
            assert vector_widths(call, replace(plan, which=which)) == (width, 8)
    halved = ConvProblem.conv((8, 64, 56, 56), (64, 64, 2, 2), (2, 2), (0, 0), (1, 1))
    assert vector_widths(Call(halved, Pass.DGRAD, "bfloat16", a=contiguous), plan) == (1, 8)
    cropped = ConvProblem.conv((8, 64, 1, 16), (64, 64, 1, 1), (1, 1), ((0, 0), (0, -1)), (1, 1))
    assert cropped.output_size == (1, 15) and row_align(cropped, Pass.DGRAD) == 1


@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD])
def test_64_bit_offsets_take_smaller_tiles(which):
    problem = conv(n=8, c=256, k=256, size=4096)
    for out in (Operand(), Operand(4)):
        near = select(Call(problem, which, "bfloat16", out=out), H200).tile
        far = select(Call(problem, which, "bfloat16", out=replace(out, far=True)), H200).tile
        assert far.m * far.n <= 64 * 64 < near.m * near.n


def test_a_contiguous_residual_takes_smaller_tiles():
    def residual(out):
        return select(Call(conv(n=64, c=256, k=256), Pass.DGRAD, "bfloat16", out=out, epilogue="tensors"), a100).tile

    a100 = DEVICES["NVIDIA A100-SXM4-80GB"]
    assert residual(Operand(4)).m * residual(Operand(4)).n <= 64 * 64 < residual(Operand()).m * residual(Operand()).n
