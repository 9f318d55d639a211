"""Fuse what follows a convolution: batch normalisation, a residual and ReLU in the convolution's own kernel.

    python examples/fuse_epilogue.py

The end of a residual block runs as four operators of PyTorch, then as one call of `conv2d_fused`. Both results are held
against float64. Without a GPU the kernels run in Triton's interpreter.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before tritonconv imports triton

import tritonconv


def main() -> float:
    """Run the block both ways and answer the largest relative error of the fused one."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    conv = torch.nn.Conv2d(32, 32, 3, padding=1, bias=False)
    norm = torch.nn.BatchNorm2d(32).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    block = torch.nn.Sequential(conv, norm).to(device, memory_format=torch.channels_last)
    x, shortcut = (torch.randn(2, 32, 8, 8, device=device).to(memory_format=torch.channels_last) for _ in range(2))

    # A normalisation with fixed statistics is a scale and a shift per channel.
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # [C]
    shift = norm.bias - norm.running_mean * scale  # [C]
    with torch.no_grad():
        y = tritonconv.conv2d_fused(x, conv.weight, padding=1, scale=scale, shift=shift, residual=shortcut, activation="relu")
        exact = torch.relu(block.double()(x.double()) + shortcut.double())
    error = ((y - exact).abs().max() / exact.abs().max()).item()
    print(f"four operators in one kernel: result {tuple(y.shape)}, largest relative error {error:.1e}")
    return error


if __name__ == "__main__":
    main()
