"""The routines that execute decoded rows; Numba compiles each on its own (`bench.executor.native`)."""
