"""Convolutions as algebra: shapes, FLOPs, bytes, plans, rooflines and predicted time, for one layer or a whole network.

Importing it needs the standard library only; sympy and torch are imported by the names that need them, when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from costmodel.count import Cost, cost, training_cost
from costmodel.phases import Phase
from costmodel.problem import ConvProblem, Gemm, Pass
from costmodel.version import __version__

if TYPE_CHECKING:
    from costmodel.bounds import Roofline, crossing_batch, roofline
    from costmodel.compare.measure import measure
    from costmodel.detector import detect
    from costmodel.device import Device, find_device
    from costmodel.forecast import predict
    from costmodel.formulas.formula import symbolic
    from costmodel.formulas.inverse import solve
    from costmodel.layers import Layer, conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, layer
    from costmodel.networks.network import Network, trace
    from costmodel.networks.timed import Forecast
    from costmodel.reports.export import to_csv, to_json, to_latex, to_markdown
    from costmodel.reports.sidebyside import SideBySide

__all__ = [
    "ConvProblem",
    "Cost",
    "Device",
    "Forecast",
    "Gemm",
    "Layer",
    "Network",
    "Pass",
    "Phase",
    "Roofline",
    "SideBySide",
    "__version__",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cost",
    "crossing_batch",
    "detect",
    "find_device",
    "layer",
    "measure",
    "predict",
    "roofline",
    "solve",
    "symbolic",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "trace",
    "training_cost",
]

_HOME = {
    "Device": "device",
    "Forecast": "networks.timed",
    "Layer": "layers",
    "Network": "networks.network",
    "Roofline": "bounds",
    "SideBySide": "reports.sidebyside",
    "conv1d": "layers",
    "conv2d": "layers",
    "conv3d": "layers",
    "conv_transpose1d": "layers",
    "conv_transpose2d": "layers",
    "conv_transpose3d": "layers",
    "crossing_batch": "bounds",
    "detect": "detector",
    "find_device": "device",
    "layer": "layers",
    "measure": "compare.measure",
    "predict": "forecast",
    "roofline": "bounds",
    "solve": "formulas.inverse",
    "symbolic": "formulas.formula",
    "to_csv": "reports.export",
    "to_json": "reports.export",
    "to_latex": "reports.export",
    "to_markdown": "reports.export",
    "trace": "networks.network",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"costmodel.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
