"""The recipes of docs/drop-in.md run, in order, and what they print is what they say."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "drop-in.md"
BLOCKS = re.findall(r"^## (.*?)$|^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.interpreter
def test_every_recipe_runs(capsys, launches):
    torch._dynamo.reset()
    names, said, heading = {"__name__": "recipes"}, {}, "the beginning"
    for title, code in BLOCKS:
        heading = title or heading
        if code:
            before = launches()
            exec(compile(code, f"{PAGE.name}: {heading}", "exec"), names)
            said[heading] = said.get(heading, "") + capsys.readouterr().out
            assert launches() != before or heading == "the beginning" or "install" in code
    assert len(said) == 8
    assert said["Convert a model"].splitlines() == [
        "2 of 2 convolutions run on tritonconv's kernels",
        "0  tritonconv.Conv2d: tritonconv",
        "3  tritonconv.Conv2d: tritonconv",
    ]
    assert "0  tritonconv.Conv2d: tritonconv, with 1, relu" in said["Fold what follows"]
    used = said["Use the kernels for torch's functions"]
    assert "3 of 3 calls ran on tritonconv's kernels" in used and "torch, where= says so" in used
    asked = said["Ask which kernels, and choose others"].splitlines()
    assert asked[0].startswith("Sequential on NVIDIA H100") and [line.split()[0] for line in asked[1:4]] == ["layer", "0", "3"]
    assert "conv2d: conv2d n1 c3 6x6 -> 4 k3x3, float32, tf32" in asked
    assert used.endswith("0 of 0 calls ran on tritonconv's kernels\n")
    torch._dynamo.reset()
