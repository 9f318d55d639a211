"""Everything that this package uses of torch without torch promising it. torch 2.11 to 2.13 have all of it.

`tests/test_private.py` fails where a torch lacks one, so that with a newer torch it is clear at once what must be replaced.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch._decomp import register_decomposition
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.nn.modules.conv import _ConvNd as ConvNd  # the base class of torch's convolution modules
from torch.utils.weak import WeakTensorKeyDictionary as WeakTensorKeyDictionary

__all__ = [
    "ConvNd",
    "FakeTensor",
    "autocast_keys",
    "below_autograd",
    "below_in_place",
    "constant",
    "dispatch_keys",
    "forward_mode",
    "fp32_precision",
    "is_differentiated_forwards",
    "is_dispatched_plainly",
    "is_observed",
    "one_level",
    "register_decomposition",
    "schema_info",
    "tangent_parts",
    "thread_keys",
    "transforms_are_active",
    "without",
]

#: A context in which ops run below the Autograd key: nothing is recorded for the backward pass.
below_autograd = torch._C._AutoDispatchBelowAutograd
#: A context in which ops run below the key that counts versions and views as well.
below_in_place = torch._C._AutoDispatchBelowADInplaceOrView
#: Whether a function of `torch.func` is being run.
transforms_are_active = torch._C._are_functorch_transforms_active
#: A context in which ops leave out the given dispatch keys.
without = torch._C._ExcludeDispatchKeyGuard
#: A context in which `Function.apply` belongs to one level of `torch.func`.
one_level = enable_single_level_autograd_function
#: The set of a tensor's keys by which the dispatcher chooses.
dispatch_keys = torch._C._dispatch_keys
_include, _exclude = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_local_exclude_set
_function_modes = torch._C._len_torch_function_stack
_profiles = torch._C._autograd._profiler_enabled
_KEYS = torch._C.DispatchKey
#: What the dispatcher may find for a call that nothing but autograd looks at before a kernel does.
_PLAIN_KEYS = functools.reduce(
    operator.or_,
    map(
        torch._C.DispatchKeySet,
        (_KEYS.CPU, _KEYS.CUDA, _KEYS.AutogradCPU, _KEYS.AutogradCUDA, _KEYS.ADInplaceOrView, _KEYS.BackendSelect),
    ),
)


def thread_keys() -> tuple[int, int]:
    """The keys that the dispatcher adds to those of tensors in this thread, and those that it leaves out, as numbers. Modes,
    autocast, tracing, levels of `torch.func` and inference mode all change them."""
    return _include().raw_repr(), _exclude().raw_repr()


def is_dispatched_plainly(records: bool, *tensors: torch.Tensor) -> bool:
    """Whether an op called on these tensors now would go to its CPU or CUDA kernel, by way of its autograd kernel at most; with
    `records` it must go by way of that one."""
    keys = functools.reduce(operator.or_, map(dispatch_keys, tensors), _include()) - _exclude()
    passes = keys.has(_KEYS.AutogradCPU) or keys.has(_KEYS.AutogradCUDA) or not records
    return passes and (keys | _PLAIN_KEYS) == _PLAIN_KEYS


def is_observed() -> bool:
    """Whether a mode of functions, forward mode or a profiler is to see a call of an op, which the keys do not tell."""
    return _function_modes() > 0 or forward_ad._current_level >= 0 or _profiles()


def fp32_precision() -> str:
    """`torch.backends.cudnn.conv.fp32_precision`, at a tenth of its cost."""
    precision: str = torch._C._get_fp32_precision_getter("cuda", "conv")
    return precision


Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """A function whose result Dynamo takes as a constant: `torch.compiler.assume_constant_result` without importing Dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def forward_mode(on: bool) -> AbstractContextManager[Any]:
    """A context in which forward mode is on or off."""
    context: AbstractContextManager[Any] = forward_ad._set_fwd_grad_enabled(on)
    return context


def is_differentiated_forwards() -> bool:
    """Whether forward mode or a function of `torch.func` may be asking for tangents."""
    return forward_ad._current_level >= 0 or transforms_are_active()


def tangent_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(primal, tangent or None) of a tensor at the outermost level."""
    parts: tuple[torch.Tensor, torch.Tensor | None] = torch._VF._unpack_dual(tensor, level=0)
    return parts


def autocast_keys(*devices: str) -> Any:
    """The dispatch keys of autocast for these kinds of devices ("cuda", "cpu"), for use with `without`."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{devices[0].upper()}"))
    return keys if len(devices) == 1 else keys | autocast_keys(*devices[1:])


def schema_info(first: int) -> Any:
    """The object that says that an op's sharding depends on its arguments from number `first` on, including lists of ints."""
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo  # here, because it takes a second to import

    return RuntimeSchemaInfo(first, None, needs_pytree=True)
