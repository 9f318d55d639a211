"""How long a convolution or a network takes in cuDNN and PyTorch today, predicted from times that others published.

The constants in `data/library.json` describe cuDNN's kernels. They are independent of the constants of this project's kernels,
and no plan is chosen by them. `python -m bench validate --fit` makes the file. Standard library only.
"""
