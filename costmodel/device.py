"""What a GPU can do: peaks, memory, limits of a multiprocessor. Standard library only.

Peaks are dense (no sparsity) with float32 accumulation, from the vendor's datasheets and architecture whitepapers; the
identity multiprocessors * clock * operations per clock reproduces the tensor peaks to 1.2 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Device:
    """One GPU model. Rates are TFLOP/s and GB/s, sizes bytes, clock MHz."""

    name: str
    capability: int  # compute capability, 90 for 9.0
    sm_count: int
    clock: float  # the clock at which the tensor peak holds
    tensor: float  # float16 and bfloat16, float32 accumulation
    tf32: float
    fp32: float
    fp64: float
    bandwidth: float
    l2_bandwidth: float
    l2_bytes: int
    shared_per_block: int = 232448
    shared_per_sm: int = 233472
    registers_per_sm: int = 65536
    warps_per_sm: int = 64
    launch_overhead: float = 4e-6  # seconds a kernel costs beyond its work
    interpreted: bool = False

    def rate(self, dtype: str, precision: str = "ieee") -> float:
        """Peak FLOP/s of the unit that multiplies `dtype` ("float16", "bfloat16", "float32", "float64")."""
        if dtype in ("float16", "bfloat16"):
            return self.tensor * 1e12
        if dtype == "float64":
            return self.fp64 * 1e12
        return (self.tf32 if precision == "tf32" else self.fp32) * 1e12


_MIB = 1 << 20

DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        Device("NVIDIA H200", 90, 132, 1830, 989.4, 494.7, 66.9, 66.9, 4800, 5500, 50 * _MIB),
        Device("NVIDIA H100 80GB HBM3", 90, 132, 1830, 989.4, 494.7, 66.9, 66.9, 3350, 5500, 50 * _MIB),
        Device("NVIDIA H100 PCIe", 90, 114, 1620, 756, 378, 51, 51, 2000, 4500, 50 * _MIB),
        Device("NVIDIA A100-SXM4-80GB", 80, 108, 1410, 312, 156, 19.5, 19.5, 2039, 4500, 40 * _MIB, 166912, 167936),
        Device("NVIDIA A100-SXM4-40GB", 80, 108, 1410, 312, 156, 19.5, 19.5, 1555, 4500, 40 * _MIB, 166912, 167936),
        Device("NVIDIA B200", 100, 148, 1860, 2250, 1125, 75, 37.5, 7672, 9000, 126 * _MIB),
    )
}

#: Triton's interpreter on a CPU. Only the time of a trip counts there (`costmodel.timing`), no limit of a GPU applies.
INTERPRETER = replace(DEVICES["NVIDIA H200"], name="interpreter", sm_count=1, interpreted=True)


def find(name: str, capability: int, sm_count: int) -> Device:
    """The table's entry for a device name, or the nearest one of its capability scaled to its multiprocessors."""
    for known in DEVICES.values():
        if name.startswith(known.name):
            return known
    nearest = max((d for d in DEVICES.values() if d.capability <= capability), key=lambda d: d.capability, default=None)
    nearest = nearest or DEVICES["NVIDIA A100-SXM4-40GB"]
    scale = sm_count / nearest.sm_count
    return replace(
        nearest,
        name=name,
        capability=capability,
        sm_count=sm_count,
        tensor=nearest.tensor * scale,
        tf32=nearest.tf32 * scale,
        fp32=nearest.fp32 * scale,
        fp64=nearest.fp64 * scale,
        bandwidth=nearest.bandwidth * scale,
        l2_bandwidth=nearest.l2_bandwidth * scale,
    )
