"""What one torch operator costs: multiply-adds of convolutions and matrix products, FLOP of the rest, bytes of its tensors.

Convolutions are `costmodel.networks.convolutions`'. Matrix products and fused attention are counted by torch's own formulas
(`torch.utils.flop_counter`). Everything else goes by the table below; an operator that is in neither is unknown.

The table's convention: an addition, a multiplication, a comparison and an elementary function (exp, log, sqrt, reciprocal,
tanh, erf, pow, sin) count one FLOP each, as the operator's defining formula has them. Copies and fills count none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from costmodel.algebra import product
from costmodel.count import Cost
from costmodel.networks.sweeps import BATCH_NORM, read_again, uses_batch_statistics

aten = torch.ops.aten

#: Operators that move no data: allocation, and views that torch does not mark as such.
FREE = frozenset(
    "empty empty_like empty_strided empty_permuted new_empty new_empty_strided lift lift_fresh _unsafe_view unsafe_split "
    "unsafe_split_with_sizes unsafe_chunk _reshape_alias set resize scalar_tensor _local_scalar_dense "
    "as_strided _assert_async _assert_tensor_metadata _sparse_coo_tensor_unsafe".split()
)
#: Operators that copy, fill, or pick elements: bytes, and no FLOP.
COPIES = frozenset(
    "clone copy _to_copy contiguous cat stack constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d index index_select gather take embedding slice_scatter "
    "select_scatter index_put _index_put_impl scatter roll flip repeat repeat_interleave tril triu masked_fill masked_select "
    "_unsafe_index _unsafe_index_put "
    "fill zero zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange linspace eye "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col one_hot "
    "select_backward slice_backward unfold_backward where uniform normal bernoulli rand randn rand_like randn_like randint "
    "randperm random max_unpool2d max_unpool3d sort topk nonzero".split()
)
#: Of those, the ones that read only the elements they return.
PICKS = frozenset("index _unsafe_index index_select gather take embedding".split())
#: In place, these overwrite their first argument without reading it.
OVERWRITES = frozenset("copy fill zero uniform normal bernoulli random".split())

#: FLOP for each output element.
ELEMENTWISE: dict[str, int] = {
    name: count
    for count, names in {
        1: "add sub rsub mul div neg abs sign floor ceil round trunc frac relu threshold maximum minimum clamp_min clamp_max "
        "fmax fmin eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not "
        "bitwise_xor exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal pow sin cos tan asin acos atan atan2 sinh cosh "
        "tanh erf erfc square remainder fmod floor_divide true_divide isnan isinf isfinite __and__ __or__ __xor__ "
        "nan_to_num threshold_backward hardtanh_backward __rshift__ __lshift__ bitwise_left_shift bitwise_right_shift",
        2: "clamp hardtanh leaky_relu _prelu_kernel prelu dropout native_dropout addcmul addcdiv leaky_relu_backward "
        "_prelu_kernel_backward native_dropout_backward logit hypot xlogy softshrink hardshrink",
        3: "elu selu softplus lerp log_sigmoid_forward sigmoid_backward tanh_backward hardsigmoid_backward softsign "
        "upsample_linear1d elu_backward softplus_backward hardswish_backward mse_loss mse_loss_backward binary_cross_entropy",
        4: "sigmoid hardsigmoid log_sigmoid log_sigmoid_backward smooth_l1_loss huber_loss "
        "upsample_linear1d_backward binary_cross_entropy_backward",
        5: "silu gelu hardswish mish",
        7: "silu_backward upsample_bilinear2d _upsample_bilinear2d_aa upsample_bilinear2d_backward",
        11: "gelu_backward mish_backward",
        15: "upsample_trilinear3d upsample_trilinear3d_backward",
        35: "upsample_bicubic2d _upsample_bicubic2d_aa upsample_bicubic2d_backward grid_sampler_2d",
    }.items()
    for name in names.split()
}
#: Activations of the fused operators by the table's name for them.
SAME_FLOPS = {"relu6": "hardtanh", "gelu_tanh": "gelu"}
#: FLOP for each element of the first tensor: reductions, scans, normalisations, and gradients that scatter.
#: Normalisation by the batch's or row's own statistics: mean and variance 4, then subtract, scale, scale, shift 4.
REDUCTIONS: dict[str, int] = {
    name: count
    for count, names in {
        1: "sum mean max min amax amin argmax argmin aminmax prod any all cumsum cumprod _adaptive_avg_pool1d count_nonzero "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "adaptive_max_pool2d adaptive_max_pool3d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward "
        "adaptive_max_pool2d_backward adaptive_max_pool3d_backward max_pool2d_with_indices_backward col2im "
        "max_pool3d_with_indices_backward upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward "
        "_upsample_nearest_exact2d_backward embedding_dense_backward nll_loss_forward nll_loss_backward nll_loss2d_forward "
        "nll_loss2d_backward reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward index_add "
        "replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward scatter_add "
        "_cdist_forward trace cummax cummin",
        2: "norm linalg_vector_norm tritonconv::rms_rstd",
        3: "logsumexp",
        4: "tritonconv::group_scale tritonconv::normalize "
        "var std var_mean std_mean _softmax_backward_data _log_softmax_backward_data",
        5: "_softmax _log_softmax _weight_norm_interface _weight_norm _safe_softmax _fused_rms_norm rms_norm",
        8: "native_layer_norm native_group_norm",
        9: "native_layer_norm_backward native_group_norm_backward native_batch_norm_backward cudnn_batch_norm_backward "
        "batch_norm_backward _weight_norm_interface_backward _fused_rms_norm_backward",
    }.items()
    for name in names.split()
}
#: Pooling: one FLOP for each element of each window; the gradient of an average counts the same.
POOLS = frozenset("max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d".split())
POOL_GRADIENTS = frozenset("avg_pool2d_backward avg_pool3d_backward".split())
CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
#: Matrix products that torch's registry lacks: the argument whose elements each take part in one multiply-add.
MATRIX_VECTOR = {"mv": 0, "dot": 0, "vdot": 0, "addmv": 1}
#: Element types that `costmodel.count.cost` knows; a convolution of integers or complex numbers is an unknown operator.
CONVOLUTION_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
CONVOLUTIONS = frozenset({aten.convolution, aten._convolution, aten.convolution_overrideable})
_LISTED = COPIES | set(ELEMENTWISE) | set(REDUCTIONS) | BATCH_NORM | POOLS | POOL_GRADIENTS | set(MATRIX_VECTOR)


def name_of(func: Any) -> str:
    """The operator without overload and in-place mark: `add` for aten::add_.Tensor, `tritonconv::fprop` outside aten."""
    space, _, name = func.name().partition("::")
    name = name.partition(".")[0]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if space == "aten" else f"{space}::{name}"


def tensors(*trees: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]


def elements(tensor: torch.Tensor) -> int:
    """Elements in memory: an expanded axis holds one."""
    return product(size if stride or size == 0 else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def moves_nothing(func: Any) -> bool:
    return func.is_view or name_of(func) in FREE


def listed(func: Any) -> bool:
    """Whether an operator is counted as it stands. Others are taken apart where torch defines them by simpler ones."""
    name, packet = name_of(func), func._overloadpacket
    return name in _LISTED or packet in flop_registry or packet in CONVOLUTIONS or moves_nothing(func)


def cost_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> tuple[Cost, bool]:
    """Cost of an operator that is no convolution, and whether its FLOP are known. Bytes always are."""
    name = name_of(func)
    moved = moved_bytes(func, name, args, kwargs, out)
    memory = Cost(bytes=moved, im2col_bytes=moved, read_again=read_again(name, args))
    macs = _macs(func, name, args, kwargs, out)
    results = tensors(out)
    if macs is not None:
        bias = elements(results[0]) if name in ("addmm", "baddbmm", "addmv") else 0
        return memory + Cost(macs, macs, bias_flops=bias, other_flops=_attention_flops(name, args)), True
    flops = _flops(name, args, kwargs, results)
    return (memory, False) if flops is None else (memory + Cost(other_flops=flops), True)


def moved_bytes(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Bytes of an operator's tensors, each once."""
    written = tensors(out)
    read = tensors(args, kwargs)
    if name in PICKS:
        read = [*written[:1], *read[1:]]
    elif name in OVERWRITES and func._schema.is_mutable:
        read = read[1:]
    return sum(elements(t) * t.element_size() for group in (read, written) for t in {id(t): t for t in group}.values())


def _macs(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int | None:
    packet = func._overloadpacket
    # attention on a CPU computes what its GPU twin does, whose formula torch has
    if name.startswith(CPU_ATTENTION):
        gradient = name.endswith("_backward")
        packet = aten._scaled_dot_product_flash_attention_backward if gradient else aten._scaled_dot_product_flash_attention
        args, kwargs = args[:4] if gradient else args[:3], {}
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2
    return args[MATRIX_VECTOR[name]].numel() if name in MATRIX_VECTOR else None


def _attention_flops(name: str, args: Sequence[Any]) -> int:
    """The softmax inside fused attention: 5 FLOP per score, and 4 more for its gradient."""
    if not name.startswith("_scaled_dot_product"):
        return 0
    gradient = name.endswith("_backward")
    query, key = args[1:3] if gradient else args[:2]
    return (9 if gradient else 5) * product(query.shape[:-1]) * key.shape[-2]


def _flops(name: str, args: Sequence[Any], kwargs: dict[str, Any], results: list[torch.Tensor]) -> int | None:
    first = next((leaf.numel() for leaf in tensors(args)), 0)
    if name in COPIES:
        return 0
    if name in ELEMENTWISE:
        return ELEMENTWISE[name] * (results[0].numel() if results else 0)
    if name in REDUCTIONS:
        return REDUCTIONS[name] * first
    if name in BATCH_NORM:
        # a scale and a shift per channel with stored statistics
        return (8 if uses_batch_statistics(name, args) else 2) * first
    if name in POOLS:
        return results[0].numel() * _window(name, args[1])
    if name in POOL_GRADIENTS:
        return first * _window(name, args[2])
    return None


def _window(name: str, kernel: int | Sequence[int]) -> int:
    """Elements of a pooling window; one number stands for every axis."""
    rank = next(int(letter) for letter in name if letter.isdigit())
    sizes = (kernel,) if isinstance(kernel, int) else tuple(kernel)
    return product(sizes * (rank // len(sizes)))
