"""Train a small network whose convolutions, forward and backward, are tritonconv's kernels.

    python examples/train_small_net.py

It learns to tell stripes that run across from stripes that run down. With a GPU the kernels run there. Without one they run
in Triton's interpreter, which takes about a minute: the arithmetic is the same.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before tritonconv imports triton

import tritonconv


def stripes(images: int, size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images [N, 1, size, size] and their classes [N]: 0 where stripes run across, 1 where they run down."""
    classes = torch.randint(0, 2, (images,))
    wave = torch.sin(torch.arange(size) * 1.5 + torch.rand(images, 1) * 6)  # [N, size]
    across = wave[:, :, None].expand(-1, -1, size)
    pictures = torch.where(classes[:, None, None] == 0, across, across.transpose(1, 2))
    return (pictures + 0.3 * torch.randn(images, size, size)).unsqueeze(1).to(device), classes.to(device)


def main(steps: int = 12, images: int = 16, size: int = 8) -> list[float]:
    """Train for some steps and answer the loss of each."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = torch.nn.Sequential(
        tritonconv.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.ReLU(),
        tritonconv.nn.Conv2d(4, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 2),
    ).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for step in range(steps):
        x, classes = stripes(images, size, device)
        loss = torch.nn.functional.cross_entropy(net(x), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step:2d}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
