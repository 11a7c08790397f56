"""Examples in the row form that verl's data set reads, and as a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caopd_verl.errors import DataError
from caopd_verl.types import Example


def to_verl_rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """One verl row for each example, in order.

    Keys: `data_source` (the example's source), `prompt` (messages), `ability` (the verifier's name), `reward_model`
    (`{"style": "rule", "ground_truth": answer}`), `extra_info` (`{"id", "verifier", "where", "index"}`, the index
    counting from 0 over `examples`).
    """
    return [
        {
            "data_source": example.source,
            "prompt": [dict(message) for message in example.messages],
            "ability": example.verifier,
            "reward_model": {"style": "rule", "ground_truth": example.answer},
            "extra_info": {
                "id": example.id,
                "verifier": example.verifier,
                "where": example.where,
                "index": index,
            },
        }
        for index, example in enumerate(examples)
    ]


def write_parquet(examples: Sequence[Example], path: str | Path) -> Path:
    """Write `to_verl_rows(examples)` to `path` (folders are made) and return it. Needs pyarrow, which verl brings.

    Raises:
        DataError: there are no examples.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not examples:
        raise DataError("there are no examples to write", where=str(path))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(to_verl_rows(examples)), path)
    return path
