"""Results that are not rows of `bench.rows`: a JSON list in a file of its own, written as a whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes the records, one per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    path.write_text(f"[\n{lines}\n]\n")
