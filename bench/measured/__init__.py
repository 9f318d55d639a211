"""Times and counts that others published, as data: the rows, where they are from, and how well predictions meet them.

None of them is of this project's kernels: they are cuDNN's and eager PyTorch's, on the machines that the rows name.
"""
