"""Convolutions as algebra: shapes, FLOPs, bytes, plans and predicted time. Importing it needs the standard library only."""

from costmodel.count import Cost, cost, training_cost
from costmodel.problem import ConvProblem, Gemm, Pass, Phase

__all__ = ["ConvProblem", "Cost", "Gemm", "Pass", "Phase", "cost", "training_cost"]
