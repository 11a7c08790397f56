"""The folder of public data sets that can't be part of the repository."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def shared_data() -> Path:
    """`$CAOPD_SHARED_DATA`, or `../shared/data` beside the repository; skips the test where neither is there."""
    root = Path(__file__).parents[2]
    path = Path(os.environ.get("CAOPD_SHARED_DATA") or root.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(
            f"no data at {path}: set CAOPD_SHARED_DATA to a folder with sciknoweval_chemistry/ and tooluse/"
        )
    return path
