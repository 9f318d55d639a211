"""The list of mutations fits the kernels as they are."""

from pathlib import Path

import pytest
from mutants import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "tritonconv" / "kernels"
#: What has no loop, mask or sum of its own to break.
WITHOUT = {"__init__.py", "index.py"}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.kernel} {m.what}".replace(" ", "_"))
def test_a_mutation_changes_one_place(mutation: Mutation) -> None:
    text = (KERNELS / mutation.file).read_text()
    assert text.count(mutation.old) == 1 and mutation.new != mutation.old
    assert all((ROOT / path).is_file() for path in mutation.tests if path.endswith(".py"))


def test_every_file_of_kernels_is_broken_somewhere() -> None:
    assert {path.name for path in KERNELS.glob("*.py")} - WITHOUT == {mutation.file for mutation in MUTATIONS} - WITHOUT
