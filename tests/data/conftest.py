"""The folder of public data sets that can't be part of the repository."""

import os
from pathlib import Path

import pytest

BESIDE_THE_REPOSITORY = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """`$CAOPD_SHARED_DATA`, or `../shared/data` beside the repository; skips the test without."""
    path = Path(os.environ.get("CAOPD_SHARED_DATA") or BESIDE_THE_REPOSITORY)
    if not path.is_dir():
        need = "set CAOPD_SHARED_DATA to a folder with sciknoweval_chemistry/ and tooluse/"
        pytest.skip(f"no data at {path}: {need}")
    return path
