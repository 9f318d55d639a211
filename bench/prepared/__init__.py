"""Compiles kernels for a GPU that is not at hand, and files them where they run, so that nothing is compiled there."""
