"""Triton kernels, a file per algorithm. They import triton only; `tritonconv.launch` knows how to call them."""
