"""Every row of `slow.txt` names tests that there are."""

from pathlib import Path

import pytest
from conftest import left_to_slow

TESTS = Path(__file__).parent


@pytest.mark.parametrize(("test", "case"), left_to_slow())
def test_every_row_names_a_test(test, case):
    file, _, function = test.partition("::")
    assert f"\ndef {function}(" in (TESTS / file).read_text()
