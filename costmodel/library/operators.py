"""The time of each operator of a network in eager PyTorch: a sum of terms from a device's figures, whose weights are fitted.

A convolution has a term for its bytes at the bandwidth and one for its multiply-adds at the peak, by kind. Other operators have
the same terms, by group. Every operator also has a term for one call. Standard library only.
"""

from __future__ import annotations

import math

from costmodel.count import Cost
from costmodel.device import Device
from costmodel.library.terms import kind_of
from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import itemsize

#: The group whose weight an operator shares, by torch's name without "_backward". All others are "pointwise".
GROUPS: dict[str, str] = {
    name: group
    for group, names in {
        "matrix product": "addmm bmm mm baddbmm addmv mv linear matmul",
        "layer norm": "native_layer_norm _fused_rms_norm rms_norm",
        "group norm": "native_group_norm",
        "batch norm": "native_batch_norm cudnn_batch_norm batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update",
        "softmax": "_softmax _safe_softmax _log_softmax _softmax_backward_data _log_softmax_backward_data",
        "reduction": "mean var std sum linalg_vector_norm amax max avg_pool2d max_pool2d_with_indices cumsum avg_pool1d "
        "avg_pool3d max_pool3d_with_indices _adaptive_avg_pool2d _adaptive_avg_pool3d prod min amin argmax var_mean",
        "copy": "clone cat _to_copy copy contiguous index index_select roll constant_pad_nd stack repeat im2col col2im pad "
        "reflection_pad2d replication_pad2d reflection_pad1d replication_pad3d gather",
    }.items()
    for name in names.split()
}
#: Groups that a compiler such as Inductor fuses with their neighbours.
FUSED = ("pointwise", "batch norm", "layer norm", "group norm", "softmax", "copy")
#: Seconds per call, which the weight of "calls" multiplies.
CALL = 1e-6


def group_of(operator: str) -> str:
    """The group of an operator that is no convolution, by torch's name for it or for its gradient's."""
    name = operator.rpartition("::")[2]
    if "attention" in name:
        return "attention"
    return GROUPS.get(name) or GROUPS.get(name.removesuffix("_backward"), "pointwise")


def convolution(problem: ConvProblem, which: Pass, device: Device, dtype: str, precision: str) -> dict[str, float]:
    """The terms of a convolution's pass in seconds, by the name of their weight."""
    kind = kind_of(problem)
    if kind == "dense" and math.prod(problem.stride) > 1:
        kind = "strided"
    rate = device.rate(dtype, precision, "fma" if kind in ("depthwise", "grouped") else None)
    bytes_at = problem.bytes(itemsize(dtype), which) / (device.bandwidth * 1e9)
    return {f"{kind} bytes": bytes_at, f"{kind} arithmetic": 2 * problem.macs / rate, "calls": CALL}


def other(operator: str, spent: Cost, device: Device, dtype: str, precision: str) -> dict[str, float]:
    """The terms of another operator in seconds, by the name of their weight; none where it moves and computes nothing."""
    if spent == Cost():
        return {}
    group = group_of(operator)
    # the weights of other normalisations were fitted to inference and include what their statistics read
    moved = spent.bytes + (spent.read_again if group == "batch norm" else 0)
    terms = {f"{group} bytes": moved / (device.bandwidth * 1e9), "calls": CALL}
    if spent.useful_macs:
        terms[f"{group} arithmetic"] = 2 * spent.useful_macs / device.rate(dtype, precision)
    return terms
