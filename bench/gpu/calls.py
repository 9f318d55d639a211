"""The calls of the first stage, the most telling first: every family and function once, then other types, layouts and
layers."""

from __future__ import annotations

from collections.abc import Iterator

from bench.gpu.ahead import normalised_items
from bench.gpu.convolutions import NUMBERS, copied_items, family_items, fused_items, layer_items
from bench.gpu.deform import deform_items
from bench.gpu.functions import causal_items, separable_items, video_items
from bench.gpu.item import Item
from bench.gpu.normal import normal_items
from bench.gpu.unfold import unfold_items


def in_order() -> Iterator[Item]:
    yield from family_items(("fp16",), ("channels_last",))
    yield from copied_items()
    for items in (causal_items, video_items, separable_items, deform_items, normal_items, normalised_items, unfold_items):
        yield from items("fp16", False)
    yield from family_items(("bf16", "tf32", "fp32", "fp64"), ("channels_last",))
    yield from fused_items("fp16")
    yield from layer_items("fp16", "channels_last")
    for numbers in ("bf16", "tf32", "fp32", "fp64"):
        if numbers != "tf32":  # this function has no products in tf32
            yield from causal_items(numbers, False)
            yield from unfold_items(numbers, False)
        yield from video_items(numbers, False)
        yield from separable_items(numbers, False)
        yield from deform_items(numbers, False)
        yield from normal_items(numbers, False)
        yield from normalised_items(numbers, False)
    yield from family_items(tuple(NUMBERS), ("contiguous",))
    for items in (causal_items, video_items, separable_items, deform_items, normal_items, normalised_items, unfold_items):
        yield from items("fp16", True)
    yield from fused_items("tf32")
    yield from layer_items("bf16", "contiguous")


def items() -> dict[str, Item]:
    """The items by name, in order. An item that occurs twice is tried once."""
    items: dict[str, Item] = {}
    for item in in_order():
        items.setdefault(item.name, item)
    return items
