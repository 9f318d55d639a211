"""A model's convolutions replaced by tritonconv's."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from tritonconv import nn as ours

Model = TypeVar("Model", bound=nn.Module)

#: torch's class -> ours, which adds no state and takes its place in an instance.
REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: ours.Conv1d,
    nn.Conv2d: ours.Conv2d,
    nn.Conv3d: ours.Conv3d,
    nn.ConvTranspose1d: ours.ConvTranspose1d,
    nn.ConvTranspose2d: ours.ConvTranspose2d,
    nn.ConvTranspose3d: ours.ConvTranspose3d,
}


def convert(module: Model) -> Model:
    """A copy of `module` whose convolutions run on tritonconv's kernels; `module` itself stays as it is.

    Parameters and buffers are shared with `module`, not copied, so training one trains both, and the state_dict has the same
    keys. Replaced are torch's six classes themselves. A subclass is left alone, since its forward may be its own (a
    parametrised layer is one). Raises TypeError for what is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"convert() takes a torch.nn.Module, got {type(module).__name__}")
    shared = {id(tensor): tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors}
    converted = copy.deepcopy(module, dict(shared))
    for part in converted.modules():
        if type(part) in REPLACEMENTS:
            part.__class__ = REPLACEMENTS[type(part)]
    return converted
