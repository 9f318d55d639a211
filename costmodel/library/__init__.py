"""What a convolution or a network takes in cuDNN and PyTorch today, predicted from times that others published.

The constants are in `data/library.json` and are of cuDNN's kernels: nothing here touches a constant of this project's kernels,
and no plan is chosen by it. `python -m bench validate --fit` makes the file. Standard library only.
"""
