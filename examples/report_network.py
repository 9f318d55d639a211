"""Report what a network costs, before any GPU is there: parameters, multiply-adds, memory, the roofline and predicted time.

    python examples/report_network.py

The model is traced on fake tensors, so nothing is computed and no weights are needed.
"""

import torch

import costmodel


def network() -> torch.nn.Module:
    """A small classifier. Put any `torch.nn.Module` here."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 7, stride=2, padding=3),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 128, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(128, 128, 3, padding=1, groups=128),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 1000),
    )


def main(device: str = "h100") -> costmodel.Network:
    """Print the network, then a line for each layer on the device."""
    traced = costmodel.trace(network(), (32, 3, 224, 224))
    print(traced)
    for row in traced.on(device):  # traced.on(device).to_html("report.html") has all of it on one page
        print(f"{row.layer.name:>4} {row.layer.op:<22} {row.seconds * 1e6:8.1f} us  {row.share:5.1%}  bound by {row.bound}")
    return traced


if __name__ == "__main__":
    main()
