"""Padding modes as index arithmetic: which pixel of an axis stands at a coordinate in its padding, and the way back."""

import triton
import triton.language as tl

from tritonconv.kernels.index import inside


@triton.jit
def mapped(coordinate, size, MODE: tl.constexpr):
    """The pixel in [0, size) that stands at a coordinate: itself within the axis, its image in the padding beyond it.

    "reflect" folds at the first and the last pixel once, so it serves coordinates from 1 - size to 2 * size - 2; "circular"
    goes round once, from -size to 2 * size - 1; "replicate" takes any. "zeros" answers the coordinate, which the caller masks
    (`is_read`). The answer has the type of the coordinate.
    """
    pixel = coordinate
    if MODE == "reflect":
        last = size - 1
        pixel = last - tl.abs(last - tl.abs(coordinate))
    if MODE == "replicate":
        pixel = tl.maximum(tl.minimum(coordinate, size - 1), 0)
    if MODE == "circular":
        pixel = tl.where(coordinate < 0, coordinate + size, tl.where(coordinate >= size, coordinate - size, coordinate))
    return pixel


@triton.jit
def is_read(mask, coordinate, size, MODE: tl.constexpr):
    """`mask` without the lanes whose coordinate holds a zero of the padding. Other modes read a pixel everywhere."""
    if MODE == "zeros":
        mask = mask & inside(coordinate, size)
    return mask


@triton.jit
def sources_of(rows, n, at, size, step, MODE_D: tl.constexpr, MODE_H: tl.constexpr, MODE_W: tl.constexpr, RANK: tl.constexpr):
    """(offset, mask) of the pixels that stand at coordinates (d, h, w): of images n in a tensor of these steps (n, d, h, w).

    Lanes without `rows`, and those that meet zeros of the padding, are masked.
    """
    offset = n * step[0] + mapped(at[2], size[2], MODE_W) * step[3]
    mask = is_read(rows, at[2], size[2], MODE_W)
    if RANK >= 2:
        offset += mapped(at[1], size[1], MODE_H) * step[2]
        mask = is_read(mask, at[1], size[1], MODE_H)
    if RANK >= 3:
        offset += mapped(at[0], size[0], MODE_D) * step[1]
        mask = is_read(mask, at[0], size[0], MODE_D)
    return offset, mask


@triton.jit
def images_of(low, high, MODE: tl.constexpr):
    """The most coordinates that `mapped` takes to one pixel, with padding of `low` and `high` pixels: the numbers of
    `image_of`. A negative `high` crops the axis."""
    count = 1
    if MODE == "reflect" or MODE == "circular":
        count = 3
    if MODE == "replicate":
        count = 1 + low + tl.maximum(high, 0)
    return count


@triton.jit
def image_of(pixel, number, size, low, high, MODE: tl.constexpr):
    """(coordinate, whether there is one) of image `number` of a pixel, 0 being itself: what `mapped` takes to the pixel.

    "reflect" and "circular" have one more at either end, "replicate" `low` of the first pixel and `high` of the last.
    """
    place = pixel
    if MODE == "reflect":
        place = tl.where(number == 0, pixel, tl.where(number == 1, -pixel, 2 * (size - 1) - pixel))
    if MODE == "circular":
        place = tl.where(number == 0, pixel, tl.where(number == 1, pixel - size, pixel + size))
    if MODE == "replicate":
        beyond = tl.where(number <= low, -number, size - 1 + number - low)
        place = tl.where(number == 0, pixel, beyond + tl.zeros_like(pixel))
    there = (place >= -low) & (place < size + high)
    if MODE == "reflect":  # the first and the last pixel, which are on a fold, are their own images
        there = there & tl.where(number == 0, pixel >= 0, pixel != place)
    if MODE == "replicate":
        there = there & tl.where(number == 0, pixel >= 0, pixel == tl.where(number <= low, 0, size - 1))
    return place, there
