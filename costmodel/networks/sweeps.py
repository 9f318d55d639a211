"""What normalisations read twice. Where the statistics are of more than a program can hold, the input is read once for them and
again for the result.

The compulsory bytes count each tensor once; predicted times add these. By operator, in transfers of x's size:

    batch norm in training   A channel's statistics come from every image, so x is read twice and y written: 3 transfers. The
                             gradient reads dy and x twice and writes dx: 5. Stored statistics need no second read.
    instance norm            It runs as the batch norm of one image whose channels are those of all images: the same.
    group norm               A group is some channels of a whole image: the same, in training or not.
    layer norm, RMS norm     A program holds a whole row: 2 transfers, and 3 for dx. The gradients of weight and bias sum across
                             rows, for which torch's second kernel reads dy and x again: 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: Batch normalisation, whose first argument is x.
BATCH_NORM = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
    "_batch_norm_no_update cudnn_batch_norm miopen_batch_norm batch_norm".split()
)
#: Gradients of normalisations over rows, whose statistics a program holds.
ROWS = frozenset("native_layer_norm_backward _fused_rms_norm_backward".split())
#: Gradients of normalisations whose statistics are of more than a program holds.
WIDE = frozenset(
    "native_batch_norm_backward cudnn_batch_norm_backward miopen_batch_norm_backward batch_norm_backward "
    "native_group_norm_backward".split()
)


def read_again(name: str, args: Sequence[Any]) -> int:
    """Bytes that an operator reads a second time, by its name without overload."""
    if name == "native_group_norm" or (name in BATCH_NORM and uses_batch_statistics(name, args)):
        return _bytes(args[0])
    if name not in ROWS | WIDE:
        return 0
    wants = _wanted(args)
    if name in ROWS:
        again = wants[0] and any(wants[1:])
    else:
        again = wants[0] and uses_batch_statistics(name, args)
    return _bytes(args[0]) + _bytes(args[1]) if again else 0


def uses_batch_statistics(name: str, args: Sequence[Any]) -> bool:
    """Whether a batch norm, or its gradient, takes the batch's statistics and not stored ones."""
    if name in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update"):
        return False
    return next((value for value in args if isinstance(value, bool)), True)


def _wanted(args: Sequence[Any]) -> tuple[bool, ...]:
    """Which of the gradients of x, weight and bias are asked for; all of them where an operator does not let one choose."""
    masks = (tuple(value) for value in args if isinstance(value, (list, tuple)) and value and isinstance(value[0], bool))
    return next(masks, (True, True, True))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
