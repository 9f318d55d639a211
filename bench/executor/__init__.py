"""Compiled kernels executed on a CPU: a Triton driver whose GPU is an executor of PTX."""
