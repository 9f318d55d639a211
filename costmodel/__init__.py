"""Convolutions as algebra: shapes, FLOPs, bytes, plans and predicted time. Importing it needs the standard library only."""

from costmodel.problem import ConvProblem, Gemm, Pass, Phase

__all__ = ["ConvProblem", "Gemm", "Pass", "Phase"]
