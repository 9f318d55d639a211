"""Cases of large depthwise filters, each with a band plan for every pass."""

from cases import Case

from costmodel.problem import Pass
from costmodel.tiling import Plan


def plans(blocks=16, box=(4, 16), rows=2, columns=16, pixels=(4, 16), images=16, split=1) -> list[Plan]:
    """A plan of each pass; `pixels` of a window are wgrad's tile."""
    step, outputs = (1, 1, *box), box[0] * box[1]
    ahead = [Plan(w, "band", blocks, outputs, rows * columns, 4, 3, step=step, rows=rows) for w in (Pass.FPROP, Pass.DGRAD)]
    tile = outputs, pixels[0] * pixels[1], images
    return [*ahead, Plan(Pass.WGRAD, "band", *tile, 4, 3, step=step, rows=pixels[0], split=split)]


def depthwise(size: tuple[int, ...], kernel: tuple[int, int], **settings) -> Case:
    return Case("conv2d", size, (size[1], 1, *kernel), groups=size[1], **{"dtype": "float16", **settings})


CASES = {
    "13x13": (depthwise((3, 2, 16, 24), (13, 13), padding=6), plans()),
    "31x31_above_the_image": (depthwise((2, 1, 10, 8), (31, 31), padding=15), plans(box=(8, 8), pixels=(8, 16))),
    "blocks_of_two_columns": (depthwise((2, 1, 6, 40), (5, 15), padding=(2, 7)), plans(box=(2, 16), pixels=(2, 32))),
    "rows_of_23": (
        depthwise((5, 1, 11, 23), (5, 13), padding=(0, 4), dtype="bfloat16"),
        plans(box=(2, 16), rows=1, columns=32),
    ),
    "stripes_across": (depthwise((17, 1, 7, 16), (3, 15), padding=(1, 7)), plans(box=(1, 16), split=2)),
    "stripes_down": (depthwise((3, 2, 16, 9), (15, 3), padding=(7, 1)), plans(box=(8, 8), pixels=(8, 8))),
    "even_same": (depthwise((2, 1, 13, 16), (14, 12), padding="same"), plans(split=3)),
    "no_padding": (depthwise((4, 1, 20, 24), (17, 9)), plans(box=(2, 16), rows=4, columns=8, pixels=(8, 32))),
    "padding_above_kernel": (depthwise((3, 1, 6, 5), (3, 3), padding=9, dtype="bfloat16"), plans(box=(4, 8), pixels=(4, 8))),
    "one_column": (depthwise((20, 1, 9, 1), (5, 1), padding=(2, 0)), plans(blocks=32, box=(2, 8), pixels=(2, 8), images=32)),
    "transposed": (
        Case("conv_transpose2d", (3, 2, 9, 16), (2, 1, 5, 13), padding=(2, 6), groups=2, dtype="float16"),
        plans(),
    ),
}
