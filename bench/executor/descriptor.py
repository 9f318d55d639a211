"""What a TMA descriptor holds, and whether the CUDA driver would make it.

The rules are those that the CUDA driver API documents for cuTensorMapEncodeTiled. Triton always asks for no interleave and
element strides of 1; their rules are here because a descriptor made otherwise would have to keep them.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_RANK = 5
MAX_BOX = 256
MAX_ELEMENT_STRIDE = 8
#: Triton's number of a swizzle -> the bytes that it spans.
SWIZZLE_SPAN = {0: 0, 1: 32, 2: 64, 3: 128}
#: The CUDA driver's number of a data type -> the bytes of an element. 11 and 12 are float32 rounded to tf32.
ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2, 10: 4, 11: 4, 12: 4}
TF32 = (11, 12)


@dataclass(frozen=True)
class TensorMap:
    """The arguments of cuTensorMapEncodeTiled, the innermost axis first. `strides` are bytes, one for each axis but the
    innermost; `swizzle` and `interleave` are the bytes that they span."""

    address: int
    element_type: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0
    fill_nan: bool = False
    element_strides: tuple[int, ...] = ()
    interleave: int = 0

    @property
    def element_size(self) -> int:
        return ELEMENT_BYTES[self.element_type]


def tensor_map(
    address: int,
    swizzle: int,
    element_size: int,
    element_type: int,
    block: object,
    shape: object,
    strides: object,
    padding: int,
) -> TensorMap:
    """The `TensorMap` of the arguments of Triton's `fill_tma_descriptor_tiled`, which has the outermost axis first and strides
    in elements."""
    block, shape, strides = (tuple(map(int, reversed(tuple(values)))) for values in (block, shape, strides))  # type: ignore
    return TensorMap(
        address,
        element_type,
        shape,
        tuple(stride * element_size for stride in strides[1:]),
        block,
        SWIZZLE_SPAN.get(swizzle, -1),
        padding == 1,
        (1,) * len(shape),
    )


def refusal(descriptor: TensorMap) -> str:
    """Why the CUDA driver would not make this descriptor; "" where it would."""
    rank, none = len(descriptor.shape), descriptor.interleave == 0
    if not 1 <= rank <= MAX_RANK:
        return f"its rank must be 1 to {MAX_RANK}, got {rank}"
    if not none and rank < 3:
        return f"an interleaved tensor must have rank 3 or more, got {rank}"
    if descriptor.element_type not in ELEMENT_BYTES:
        return f"there is no data type {descriptor.element_type}"
    if not len(descriptor.strides) + 1 == len(descriptor.box) == rank:
        given = f"{len(descriptor.strides)} and {len(descriptor.box)}"
        return f"{rank} axes have {rank - 1} strides and {rank} extents of a box, got {given}"
    unit = 32 if descriptor.interleave == 32 else 16
    if descriptor.address % unit:
        return f"its address must be a multiple of {unit} bytes, got {descriptor.address:#x}"
    for axis, size in enumerate(descriptor.shape):
        if not 1 <= size <= 1 << 32:
            return f"axis {axis} must have 1 to 2^32 elements, got {size}"
    for axis, stride in enumerate(descriptor.strides, 1):
        if stride % unit or not 0 <= stride < 1 << 40:
            return f"the stride of axis {axis} must be a multiple of {unit} bytes below 2^40, got {stride}"
    for axis, extent in enumerate(descriptor.box):
        if not 1 <= extent <= MAX_BOX:
            return f"axis {axis} of its box must have 1 to {MAX_BOX} elements, got {extent}"
    for axis, step in enumerate(descriptor.element_strides):
        if not 1 <= step <= MAX_ELEMENT_STRIDE and not (none and axis == 0):
            return f"the element stride of axis {axis} must be 1 to {MAX_ELEMENT_STRIDE}, got {step}"
    if descriptor.interleave not in (0, 16, 32) or descriptor.swizzle not in SWIZZLE_SPAN.values():
        return f"there is no interleave of {descriptor.interleave} bytes with a swizzle of {descriptor.swizzle}"
    if descriptor.interleave == 32 and descriptor.swizzle != 32:
        return f"an interleave of 32 bytes needs a swizzle of 32, got {descriptor.swizzle}"
    inner = descriptor.box[0] * descriptor.element_size
    if none and inner % 16:
        return f"its box must be a multiple of 16 bytes along axis 0, got {inner}"
    if none and descriptor.swizzle and inner > descriptor.swizzle:
        return f"its box must be no wider along axis 0 than the swizzle's {descriptor.swizzle} bytes, got {inner}"
    if descriptor.fill_nan and descriptor.element_type not in (6, 7, 8, 9, 10, 11, 12):
        return f"only a floating-point tensor can be filled with NaN outside, got data type {descriptor.element_type}"
    return ""


def overlap(descriptor: TensorMap) -> str:
    """Where a descriptor's axes do not nest, that is where a stride is shorter than what lies within its axis; "" where they
    do.

    The driver's documentation computes nested strides but does not list others among what is refused. By its words axes that
    meet the same memory twice are legal, as every address of them is. An axis of one element may have any stride.
    """
    within = descriptor.shape[0] * descriptor.element_size
    for axis, (size, stride) in enumerate(zip(descriptor.shape[1:], descriptor.strides, strict=True), 1):
        if size > 1 and stride < within:
            return f"axis {axis} steps by {stride} bytes over {within} that lie within it"
        within = max(within, size * stride)
    return ""
