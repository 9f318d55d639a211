"""What of a kernel's PTX is code: the hash that tells two kernels apart, and what kind of kernel one is."""

from __future__ import annotations

import hashlib
import re

#: Kernels by name, where one name is one family.
FAMILY_OF = {
    "tma_kernel": "tma",
    "slide_kernel": "depthwise",
    "taps_kernel": "depthwise",
    "strip_kernel": "depthwise",
    "strip_reduce_kernel": "depthwise",
    "band_kernel": "band",
    "table_kernel": "band",
    "diagonal_kernel": "band",
    "diagonal_reduce_kernel": "band",
    "causal_kernel": "causal",
    "causal_backward_kernel": "causal",
    "causal_update_kernel": "causal",
    "final_state_kernel": "causal",
    "state_gradient_kernel": "causal",
    "video_kernel": "video",
    "separable_kernel": "separable",
    "reduce_kernel": "reduce",
    "fprop_kernel": "gather",
    "dgrad_kernel": "gather",
    "wgrad_kernel": "gather",
}
#: Lines that say where code is from and not what it is.
_ORIGIN = re.compile(r"^\s*(\.loc\b|\.file\b|//|\$L__tmp\d+:)")


def ptx_hash(ptx: str) -> str:
    """16 hexadecimal digits of the code: comments, source positions and debug sections are left out."""
    digest = hashlib.sha256()
    for line in ptx.splitlines():
        if line.lstrip().startswith(".section"):
            break
        if not _ORIGIN.match(line):
            digest.update(line.partition("//")[0].rstrip().encode() + b"\n")
    return digest.hexdigest()[:16]
