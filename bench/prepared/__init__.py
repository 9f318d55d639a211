"""Kernels compiled for a GPU that is not at hand, and filed where they run so that nothing is compiled there."""
