"""Times and counts that others published, as data: the rows, their sources, and how well predictions agree with them.

None of them measures this project's kernels. They are times of cuDNN and eager PyTorch, on the machines that the rows name.
"""
