"""Cases that nobody thought of: seeded ones, and ones that hypothesis looks for and shrinks.

A few by default, the same ones on every run. TRITONCONV_FUZZ=N runs N of each kind.
"""

import os
import random

import cases
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TRITONCONV_FUZZ", "20"))


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_seeded(seed: int, device: str, launched) -> None:
    oracle.check(cases.drawn(random.Random(seed).randint), device)


@st.composite
def drawn_cases(draw: st.DrawFn) -> cases.Case:
    return cases.drawn(lambda low, high: draw(st.integers(low, high)))


@given(case=drawn_cases())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    # The fixtures poison memory and name the device: nothing that one example leaves for the next.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_hypothesis(device: str, case: cases.Case) -> None:
    oracle.check(case, device)
