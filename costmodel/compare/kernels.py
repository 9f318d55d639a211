"""What the names of a GPU kernel and its operator say: the kind of operator, layout copies, algorithm, arithmetic."""

from __future__ import annotations

import re

#: Kernels that only turn a tensor from one layout into another.
LAYOUT = re.compile(r"nchwtonhwc|nhwctonchw|ncdhwto|ndhwcto|nchw2nhwc|nhwc2nchw|tensortransform|transpose_readwrite|"
                    r"cudnn.*(?:fold|unfold)|im2col4d", re.I)  # fmt: skip
INDIRECT = re.compile(r"winograd|(?<![a-z])fft|fft2d|fftconv|cgemm", re.I)
TF32 = re.compile(r"tf32|s1688|xmma_.*tf32", re.I)
FP32 = re.compile(r"scudnn|sgemm|simt|_ffma_|f32f32_f32f32_f32_nn|implicit_convolve_sgemm", re.I)
HALF = re.compile(r"h884|h1688|s884cudnn|s16816|fp16|f16f16|__half|half", re.I)
COMMUNICATION = re.compile(r"nccl|rccl|nvshmem|allreduce|all_gather|reduce_scatter", re.I)

#: Operators by kind, by torch's names without aten:: and a trailing underscore.
_OPERATORS = {
    "normalisation": "batch_norm cudnn_batch_norm native_batch_norm _batch_norm_impl_index layer_norm native_layer_norm "
    "group_norm native_group_norm instance_norm rms_norm _fused_rms_norm native_batch_norm_backward local_response_norm "
    "cudnn_batch_norm_backward native_layer_norm_backward native_group_norm_backward batch_norm_backward "
    "_batch_norm_with_update _native_batch_norm_legit",
    "matrix products and attention": "mm addmm bmm baddbmm matmul linear einsum addmv mv _scaled_mm",
    "reductions and pools": "mean sum max min amax amin argmax var std var_mean softmax _softmax log_softmax _log_softmax norm "
    "max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d max_pool3d_with_indices "
    "avg_pool3d max_pool2d_with_indices_backward avg_pool2d_backward _adaptive_avg_pool2d_backward nll_loss_forward "
    "nll_loss_backward cross_entropy_loss _softmax_backward_data _log_softmax_backward_data linalg_vector_norm cumsum topk "
    "sort nll_loss2d_forward nll_loss2d_backward",
    "copies": "copy clone contiguous to _to_copy cat stack index index_select gather fill zero zeros ones pad constant_pad_nd "
    "roll repeat embedding slice_backward select_backward zeros_like empty_like new_zeros",
}  # fmt: skip
_KIND = {name: kind for kind, names in _OPERATORS.items() for name in names.split()}


def plain(operator: str) -> str:
    """ "aten::add_" as "add"."""
    return operator.rpartition("::")[2].rstrip("_")


def kind_of(operator: str | None, kernel: str) -> str:
    """One of `measured.KINDS` for a kernel that no convolution launched."""
    if COMMUNICATION.search(kernel):
        return "communication"
    if operator is None:
        return "copies" if kernel.startswith(("Memcpy", "Memset")) else "other"
    name = plain(operator)
    if name.startswith(("_foreach", "_fused_adam", "_fused_sgd", "_amp_")) or "Optimizer" in operator:
        return "optimizer"
    if "attention" in name or "flash" in name:
        return "matrix products and attention"
    if not operator.startswith("aten::"):
        return "other"
    return _KIND.get(name) or _KIND.get(name.removesuffix("_backward"), "pointwise")


def precision_of(names: list[str], capability: int) -> tuple[str, str]:
    """(precision, remark) of float32 by the names of the kernels that ran. Where these say nothing, it is cuDNN's default: TF32
    from compute capability 8.0 on."""
    joined = " ".join(names)
    if TF32.search(joined):
        return "tf32", ""
    if capability < 80 or (FP32.search(joined) and "tensorop" not in joined):
        return "ieee", ""
    return "tf32", "float32 is taken for TF32, cuDNN's default from compute capability 8.0 on; kernel names do not say"
