"""The table of networks in docs/cost-model.md: what the cost model says about them. Needs no GPU."""

from __future__ import annotations

from costmodel.device import find_device
from costmodel.reports.report import study

NETWORKS = ("resnet50", "vgg16", "mobilenet_v2", "efficientnet_b0", "convnext_tiny")
BATCH = 32


def table() -> str:
    """Markdown: parameters, MAC per image, the share of MAC that meets no padding, and times per batch."""
    lines = [
        "| 224x224 | parameters | dense MAC an image | useful | bytes, batch 32 | roofline, H100 | predicted, H100 |",
        "|---|---|---|---|---|---|---|",
    ]
    device = find_device("h100")
    for name in NETWORKS:
        report = study(f"torchvision.models:{name}", [(BATCH, 3, 224, 224)], device, "bfloat16", "ieee")
        forward = report.totals[0]
        assert forward.low is not None and forward.high is not None  # a report times the forward pass
        lines.append(
            f"| `{name}` | {report.parameters / 1e6:.3f} M | {forward.dense_macs / BATCH / 1e9:.2f} G "
            f"| {forward.useful_macs / forward.dense_macs:.1%} | {forward.bytes / 1e9:.2f} GB "
            f"| {forward.roofline_seconds * 1e3:.2f} ms | {forward.low * 1e3:.1f} to {forward.high * 1e3:.1f} ms |"
        )
    return "\n".join(lines)
