"""Band plans without a launch: which are chosen, what is refused, and what they count."""

import itertools

import pytest
from bands import plans
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.count import cost
from costmodel.device import DEVICES, INTERPRETER
from costmodel.families import band, band_windows
from costmodel.legality import refusal
from costmodel.plan import candidates, predict, select
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Plan
from tritonconv import launch
from tritonconv.layout import channels_last_strides, dense_strides

H100 = DEVICES["NVIDIA H100 80GB HBM3"]


def problem(kernel, size=(32, 32), batch=64, channels=384, padding=None) -> ConvProblem:
    r, s = kernel
    pad = (r // 2, s // 2) if padding is None else padding
    return ConvProblem.conv((batch, channels, *size), (channels, 1, r, s), (1, 1), pad, (1, 1), channels)


def call(of: ConvProblem, which: Pass, dtype="float16", last=False, epilogue="") -> Call:
    """Of dense tensors, all contiguous or all but the weights channels-last."""

    def key(shape, pixels):
        order = range(len(shape) - 1, -1, -1)
        return shape, channels_last_strides(shape) if last and pixels else dense_strides(shape, order)

    x, w, y = key(of.input_shape, True), key(of.weight_shape, False), key(of.output_shape, True)
    tensors = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
    return Call(of, which, dtype, "ieee", *launch.describe(of, which, *tensors), epilogue)


@pytest.mark.parametrize("which", Pass)
@pytest.mark.parametrize("size, kernel", list(itertools.product([(16, 16), (32, 32), (64, 64), (28, 28)], [13, 21, 31])))
def test_large_filters_take_tensor_cores(size, kernel, which):
    asked = call(problem((kernel, kernel), size), which)
    plan = select(asked, H100)
    slower = min(predict(asked, other, H100).seconds for other in candidates(asked, H100) if other.family == "depthwise")
    assert plan.family == "band" and predict(asked, plan, H100).seconds < slower
    assert plan.pack == (("a", "b") if which == Pass.WGRAD else ("a",)) * (size[1] % 8 > 0)


@pytest.mark.parametrize("which", Pass)
def test_the_goal_of_replknet(which):
    """31 x 31 on 32 x 32: five times what the FMA units take at least, at their peak, and its weight gradient three times."""
    of = problem((31, 31))
    found = predict(call(of, which), select(call(of, which), H100), H100)
    at_peak = 2 * of.macs / H100.rate("float32")
    assert found.seconds < at_peak / (3 if which == Pass.WGRAD else 5)


@pytest.mark.parametrize("which", Pass)
def test_others_do_not(which):
    for kernel in ((3, 3), (5, 5), (7, 7), (9, 9)):
        assert not any(plan.family == "band" for plan in candidates(call(problem(kernel), which), H100))
    assert select(call(problem((31, 31)), which, "float32"), H100).family == "depthwise"
    assert select(call(problem((31, 31)), which), INTERPRETER).family == "depthwise"


@pytest.mark.parametrize("which", Pass)
def test_channels_last_is_copied_where_that_pays(which):
    last = call(problem((31, 31)), which, last=True)
    plan = select(last, H100)
    assert plan.family == "band" and plan.pack == (("a", "b") if which == Pass.WGRAD else ("a",))
    assert band.copies_result(last) == (which != Pass.WGRAD)
    planes = call(problem((31, 31)), which)
    assert predict(last, plan, H100).seconds > predict(planes, select(planes, H100), H100).seconds


@pytest.mark.parametrize("epilogue", ["channels", "tensors", "heavy"])
def test_an_epilogue_takes_tiles_that_leave_registers(epilogue):
    asked = call(problem((31, 31)), Pass.FPROP, epilogue=epilogue)
    plan, most = select(asked, H100), band.EPILOGUE_SUMS[epilogue]
    assert plan.family == "band" and plan.block_m * plan.block_n <= most * 32 * plan.num_warps
    large = Plan.parse("fprop:band:128x256x32:w8:s4:step1x1x8x32")
    assert bool(refusal(asked, large, H100)) == (most < 128)


def test_stripes_take_tensor_cores_too():
    for kernel in ((51, 5), (5, 51)):
        assert select(call(problem(kernel, (56, 56), 32, 96), Pass.FPROP), H100).family == "band"


@pytest.mark.parametrize(
    "text, words",
    [
        ("fprop:band:16x64x32:w4:s3:step1x1x4x8:rows2", "product 64"),
        ("fprop:band:16x64x32:w4:s3", "step must be"),
        ("fprop:band:16x64x32:w4:s3:step1x1x16x4:rows2", "multiple of 8"),
        ("fprop:band:16x64x32:w4:s3:step1x2x2x16:rows2", "step must be"),
        ("fprop:band:16x64x32:w4:s3:step1x1x-4x-16", "step must be"),
        ("fprop:band:16x64x32:w64:s3:step1x1x4x16:rows2", "at most 32, got 64"),
        ("wgrad:band:64x64x16:w4:s3:split10000000:step1x1x4x16:rows4", "32 bits do not count"),
        ("fprop:band:16x64x32:w4:s3:step1x1x4x16:rows8", "rows must be"),
        ("fprop:band:16x64x32:w4:s3:step1x1x4x16:rows3", "rows must be"),
        ("fprop:band:16x64x24:w4:s3:step1x1x4x16", "block_k must be a power of two"),
        ("fprop:band:16x64x32:w4:s3:step1x1x4x16:split2", "split must be 1"),
        ("fprop:band:16x64x32:w4:s3:step1x1x4x16:pack-b", "weights are read as they lie"),
        ("fprop:band:512x256x64:w8:s4:step1x1x8x32", "shared memory"),
        ("wgrad:band:64x64x16:w4:s3:step1x1x4x16:rows2", "must hold a block of 4 x 16"),
        ("wgrad:band:64x64x16:w4:s3:step1x1x4x16:rows8", "must hold a block of 4 x 16"),
    ],
)
def test_what_no_plan_may_say(text, words):
    plan = Plan.parse(text)
    assert words in refusal(call(problem((13, 13)), plan.which), plan, H100)


@pytest.mark.parametrize("which", Pass)
def test_what_32_bits_do_not_count_is_left_to_others(which):
    blocks = call(ConvProblem.conv((1 << 31, 1, 1, 1), (1, 1, 11, 11), (1, 1), (5, 5), (1, 1), 1), which)
    taps = ConvProblem.conv((1, 1, 1, 1 << 28), (1, 1, 1, 1 << 28), (1, 1), (0, 0), (1, 1), 1)
    assert not list(band.plans(blocks, H100)) and select(blocks, H100).family != "band"
    plan = next(plan for plan in plans() if plan.which == which)
    for asked in (blocks, Call(taps, which, "float16")):
        assert "32 bits do not count" in refusal(asked, plan, H100)


@pytest.mark.parametrize(
    "of, dtype, words",
    [
        (ConvProblem.conv((2, 4, 16, 16), (8, 1, 13, 13), (1, 1), (6, 6), (1, 1), 4), "float16", "one channel and one filter"),
        (ConvProblem.conv((2, 4, 16), (4, 1, 13), (1,), (6,), (1,), 4), "float16", "2-D layers"),
        (
            ConvProblem.conv((2, 4, 16, 16), (4, 1, 13, 13), (2, 1), (6, 6), (1, 1), 4),
            "float16",
            "stride and dilation must be 1",
        ),
        (
            ConvProblem.conv((2, 4, 32, 32), (4, 1, 13, 13), (1, 1), (6, 6), (1, 2), 4),
            "float16",
            "stride and dilation must be 1",
        ),
        (problem((13, 13)), "float32", "in 16 bits, got float32"),
    ],
)
def test_what_it_does_not_serve(of, dtype, words):
    plan = plans()[0]
    assert words in refusal(Call(of, Pass.FPROP, dtype), plan)


SHAPES = [
    (problem((31, 31), (32, 32), 64), (8, 32), 128),
    (problem((13, 13), (20, 40), 3), (4, 16), 16),
    (problem((5, 21), (9, 72), 40, padding=(0, 3)), (2, 32), 64),
    (problem((31, 13), (24, 72), 32), (8, 16), 16),
    (problem((3, 3), (4, 8), 32, padding=(40, 1)), (4, 8), 32),
]


@pytest.mark.parametrize("of, box, blocks", SHAPES)
@pytest.mark.parametrize("which", [Pass.FPROP, Pass.DGRAD])
def test_trips_are_those_of_windows_inside_the_image(which, of, box, blocks):
    """Counted again, block by block: the rows and columns of a window that some block of a program has inside its image."""
    shape = band.shape_of(of, which)
    rows, columns = 2, 16
    across, down = -(-shape.outputs[1] // box[1]), -(-shape.outputs[0] // box[0])
    places = [(p * box[0], q * box[1]) for p in range(down) for q in range(across) for _ in range(of.batch)]
    trips = 0
    for first in range(0, len(places), blocks):
        met = set(places[first : first + blocks])
        in_t = [
            t for t in range(box[0] + shape.kernel[0] - 1) if any(0 <= p - shape.low[0] + t < shape.inputs[0] for p, _ in met)
        ]
        in_j = [
            j
            for j in range(box[1] + shape.kernel[1] - 1 + shape.gap)
            if any(0 <= q - shape.lead + j < shape.inputs[1] for _, q in met)
        ]
        if len({p for p, _ in met}) > 1 and across > 1:  # these take every column
            in_j = range(
                max(0, shape.lead - (across - 1) * box[1]),
                min(shape.inputs[1] + shape.lead, box[1] + shape.kernel[1] - 1 + shape.gap),
            )
        trips += max(1, -(-len(in_t) // rows) * -(-len(in_j) // columns))
    found = band.launch_of(shape, which, band.Band(blocks, box, rows, columns), 1)
    assert (found.tiles, found.trips) == (-(-len(places) // blocks), trips * of.in_channels)


def by_program(shape: band.Shape, tile: band.Band) -> tuple[int, int]:
    """(trips, rows times columns of taps read) of a channel's programs, one after the other as the kernel runs them."""
    rows, trips, read = shape.images * band_windows.blocks_of(shape, tile.box), 0, 0
    for first in range(0, rows, tile.blocks):
        met = first // shape.images, (min(first + tile.blocks, rows) - 1) // shape.images
        down, right = band_windows.steps_of(shape, tile, *met)
        trips += max(1, down * max(1, right))
        read += band_windows.rows_read(shape, tile, down) * band_windows.columns_read(shape, tile, right)
    return trips, read


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 5, 16, 33, 64, 129]),
    st.tuples(st.integers(1, 90), st.integers(1, 12)),
    st.tuples(st.integers(1, 90), st.integers(1, 12)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(-8, 50), st.integers(-20, 50)),
    st.sampled_from([(8, 32), (4, 16), (2, 16), (16, 16), (1, 16), (2, 8)]),
    st.sampled_from([16, 64, 128]),
)
def test_programs_that_are_cut_alike_are_counted_together(images, inputs, outputs, kernel, low, box, blocks):
    sizes = [(height, 8 * vectors) for height, vectors in (inputs, outputs)]
    shape, tile = band.Shape(images, 3, *sizes, kernel, low), band.Band(blocks, box, 2, 16)
    found, (trips, read) = band.launch_of(shape, Pass.FPROP, tile, 1), by_program(shape, tile)
    assert found.trips == 3 * trips and found.read == read / (trips * 32)


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_a_large_layer_is_counted_in_few_steps(batch):
    """4096 to 32768 programs a channel, and a choice within a few milliseconds."""
    shape = band.shape_of(problem((63, 63), (1024, 1024), batch, 64), Pass.FPROP)
    for box in ((8, 32), (2, 16)):
        kinds = list(band_windows.cuts(shape, band.Band(16, box, 1, 32)))
        tiles = sum(programs for programs, _, _ in kinds)
        assert tiles == -(-batch * band_windows.blocks_of(shape, box) // 16) > 4 * len(kinds)


def test_what_its_bytes_rule_out_is_not_predicted(monkeypatch):
    asked = call(problem((13, 13), (14, 14), 1), Pass.FPROP)
    _, plan = band.quickest(asked, H100, float("inf"))
    assert plan is not None
    for other in band.plans(asked, H100):
        assert band.at_least(asked, other, H100) <= predict(asked, other, H100).seconds
    monkeypatch.setattr(band, "predict", lambda *_: pytest.fail("predicted"))
    assert band.quickest(asked, H100, band.at_least(asked, plan, H100))[1] is None


def test_the_interpreter_takes_its_own_time():
    asked, plan = call(problem((13, 13)), Pass.FPROP), plans()[0]
    found, launched = predict(asked, plan, INTERPRETER), band.planned(asked.problem, plan)
    assert found.bound == "the interpreter" and found.seconds >= 12e-3 * (launched.programs + launched.trips)


@pytest.mark.parametrize("of", [shape[0] for shape in SHAPES])
def test_weight_gradients_meet_every_row_that_they_need(of):
    shape, tile = band.shape_of(of, Pass.WGRAD), band.Band(32, (4, 32), 8, 32)
    for number in range(-(-(4 + shape.kernel[0] - 1) // 8)):
        first, end = band.rows_met(shape, tile, number)
        needed = [
            p
            for p in range(-(-shape.outputs[0] // 4))
            if any(0 <= p * 4 - shape.low[0] + t < shape.inputs[0] for t in range(8 * number, 8 * number + 8))
        ]
        assert needed == list(range(first, end))


@pytest.mark.parametrize("of, split", [(SHAPES[0][0], 1), (SHAPES[1][0], 3), (SHAPES[2][0], 2)])
def test_a_weight_gradients_trips_are_blocks_times_images(of, split):
    shape, tile = band.shape_of(of, Pass.WGRAD), band.Band(16, (4, 32), 8, 32)
    tiles_t, across = -(-(4 + shape.kernel[0] - 1) // 8), -(-shape.outputs[1] // 32)
    steps = [
        (end - first) * across * -(-of.batch // 16) for first, end in (band.rows_met(shape, tile, i) for i in range(tiles_t))
    ]
    found = band.launch_of(shape, Pass.WGRAD, tile, split)
    assert found.programs == of.in_channels * found.tiles * split
    assert found.trips == of.in_channels * found.tiles // tiles_t * sum(max(1, -(-n // split)) * split for n in steps)


def test_issued_multiply_adds_cover_the_useful_ones():
    of = problem((13, 13), (20, 40), 3)
    for which in Pass:
        for plan in candidates(call(of, which), H100):
            if plan.family == "band":
                counted = cost(of, which, dtype="float16", plan=plan)
                assert counted.issued_macs is not None and counted.issued_macs >= counted.useful_macs


def test_a_result_that_lies_elsewhere_costs_its_copy():
    asked = call(problem((13, 13), (28, 28)), Pass.FPROP)
    plan = next(band.plans(asked, H100))
    assert plan.pack == ("a",) and band.launches(asked, plan) == 5
    assert band.copied_bytes(asked, plan) == 2 * 2 * 2 * 64 * 384 * 28 * 32
    followed = call(problem((13, 13), (28, 28)), Pass.FPROP, epilogue="tensors")
    assert band.launches(followed, plan) == 6 and band.copied_bytes(followed, plan) == 3 * 2 * 2 * 64 * 384 * 28 * 32
    inside = call(problem((13, 13)), Pass.FPROP)
    plan = next(band.plans(inside, H100))
    assert band.launches(inside, plan) == 2 and band.copied_bytes(inside, plan) == 0
