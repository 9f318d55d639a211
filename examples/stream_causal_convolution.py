"""Stream a causal convolution: read a prompt at once, then one token at a time.

    python examples/stream_causal_convolution.py

This is the short convolution of state-space models such as Mamba. The streamed result equals that of the whole sequence.
Without a GPU the kernels run in Triton's interpreter.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before tritonconv imports triton

import tritonconv


def main(prompt: int = 12, tokens: int = 4) -> float:
    """Stream a sequence and answer its largest difference from the whole sequence's result."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, channels, taps = 2, 64, 4
    x = torch.randn(batch, prompt + tokens, channels, device=device)  # [B, L, C]
    weight, bias = torch.randn(channels, taps, device=device), torch.randn(channels, device=device)
    with torch.no_grad():
        whole = tritonconv.causal_conv1d(x, weight, bias, "silu", layout="BLC")

        y, state = tritonconv.causal_conv1d(x[:, :prompt], weight, bias, "silu", return_final_state=True, layout="BLC")
        streamed = [y]
        for t in range(prompt, prompt + tokens):  # the state [B, C, K - 1] is changed in place
            streamed.append(tritonconv.causal_conv1d_update(x[:, t], state, weight, bias, "silu").unsqueeze(1))
    difference = (torch.cat(streamed, 1) - whole).abs().max().item()
    print(f"{prompt} columns at once and {tokens} one by one: largest difference from the whole {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
