"""What an arithmetic is called, and which one is meant where none is named: one set of names for the whole package.

Standard library only: a torch.dtype is read by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from costmodel.device import Device

#: The names that a user may give: name -> (dtype, precision). Of the names of one arithmetic the short one comes first.
NAMES = {
    "fp16": ("float16", "ieee"),
    "bf16": ("bfloat16", "ieee"),
    "tf32": ("float32", "tf32"),
    "fp32": ("float32", "ieee"),
    "fp64": ("float64", "ieee"),
    "float16": ("float16", "ieee"),
    "half": ("float16", "ieee"),
    "bfloat16": ("bfloat16", "ieee"),
    "float32": ("float32", "ieee"),
    "float": ("float32", "ieee"),
    "float64": ("float64", "ieee"),
    "double": ("float64", "ieee"),
}
DEFAULT = "bfloat16"


class Arithmetic(NamedTuple):
    """A dtype by torch's name, the precision of its products ("ieee", or "tf32" of float32), and a remark in words or ""."""

    dtype: str
    precision: str
    remark: str = ""

    @property
    def words(self) -> str:
        """The dtype, and for float32 also the precision of its products: "float32, tf32"."""
        return f"{self.dtype}, {self.precision}" if self.dtype == "float32" else self.dtype

    @property
    def word(self) -> str:
        """The short name: "bf16", "tf32"."""
        return next(name for name, known in NAMES.items() if known == (self.dtype, self.precision))


def arithmetic_named(dtype: Any = None, device: Device | None = None, precision: str = "ieee") -> Arithmetic:
    """The arithmetic that a name ("bf16", "float16", "tf32") or a torch.dtype means.

    None is bfloat16, or float16 on a device whose tensor cores do not multiply bfloat16, as the remark then says. `precision`
    "tf32" makes float32 mean tf32. Raises ValueError for another name, and for an arithmetic that the device lacks.

    >>> arithmetic_named("fp16") == arithmetic_named("float16")
    True
    >>> arithmetic_named("tf32")[:2], arithmetic_named().word
    (('float32', 'tf32'), 'bf16')
    """
    remark = ""
    if dtype is None:
        name = DEFAULT if device is None else device.default_dtype
        known = (name, "ieee")
        if name != DEFAULT:
            remark = f"{name} is taken, since {device.name} has no bfloat16" if device is not None else ""
    else:
        name = str(dtype).removeprefix("torch.").lower()
        if name not in NAMES:
            raise ValueError(f"dtype {name!r} is unknown: one of {', '.join(NAMES)}, or such a torch.dtype")
        known = NAMES[name]
    if precision not in ("ieee", "tf32"):
        raise ValueError(f"precision must be 'ieee' or 'tf32', got {precision!r}")
    if precision == "tf32" and known[0] == "float32":
        known = NAMES["tf32"]
    if device is not None:
        device.rate(*known)
    return Arithmetic(*known, remark)
