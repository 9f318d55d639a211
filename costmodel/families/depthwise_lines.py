"""Cache lines that the depthwise kernels touch. Plain arithmetic, standard library only."""

from __future__ import annotations

from costmodel.algebra import ceil_div
from costmodel.families.depthwise import Shape, Tile, Work, gathered, is_planes, loads_together
from costmodel.problem import Pass
from costmodel.tiling import Call, itemsize

#: Bytes of a cache line, of which the load unit takes one per clock.
LINE = 128


def touched_lines(call: Call, shape: Shape, tile: Tile, work: Work) -> float:
    """Cache lines that a warp touches in a trip, of which the load unit takes one per clock.

    Where pixels are channels-last, lanes of one column tile have neighbouring channels. Lanes of other tiles are `columns`
    pixels away, so that each tile touches lines of its own once that is 128 bytes. Of a tensor that is read or written along
    its rows (channels-first, or with one channel) neighbouring lanes share their lines, and none are counted.
    """
    problem, size, lanes = call.problem, itemsize(call.dtype), 32 * tile.lanes_per_thread
    if is_planes(call):  # neighbouring lanes have neighbouring columns first
        groups = min(tile.groups, lanes)
        channels = min(tile.channels, lanes // groups)
    else:
        channels = min(tile.channels, lanes)
        groups = min(tile.groups, lanes // channels)
    wgrad = shape.which == Pass.WGRAD
    sources, others = problem.in_channels, problem.out_channels  # channels of the gathered tensor, and of the other one
    if shape.which == Pass.DGRAD:
        sources, others = others, sources
    # lanes that see the same channel of the gathered tensor, and of the other
    sharing, paired = (problem.filters_per_group, problem.channels_per_group) if wgrad else (shape.per_group, 1)
    touched = 0.0
    if gathered(call).unit == 1:
        step = tile.columns // shape.out_group[2] * shape.in_step[2]
        pixels = work.read / (shape.summed if loads_together(call, tile.taps) else 1)
        touched += pixels * _lines(groups, max(1, channels // sharing) * shape.summed * size, step * sources * size)
    if (call.a if wgrad else call.out).unit == 1:
        pixels = work.beside if wgrad else work.stored
        touched += pixels * _lines(groups, max(1, channels // paired) * size, tile.columns * others * size)
    return touched


def _lines(groups: int, run: int, step: int) -> int:
    """Lines of `groups` runs of `run` bytes that begin `step` bytes apart."""
    return ceil_div((groups - 1) * step + run, LINE) if step < LINE else groups * ceil_div(run, LINE)
