"""Examples in the row form that verl's data set reads, and as a Parquet file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caopd_verl.errors import DataError
from caopd_verl.types import Example


def to_verl_rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """One verl row for each example, in order; `verl_ext.dataset.example_of` is the inverse.

    Keys: `data_source` (the example's source), `prompt` (messages), `ability` (the verifier's
    name), `reward_model` (`{"style": "rule", "ground_truth": answer}`) and `extra_info`: `id`,
    `verifier`, `where`, `index` (from 0 over `examples`), `meta` and `demonstration` as JSON text.
    """
    return [_verl_row(example, index) for index, example in enumerate(examples)]


def _verl_row(example: Example, index: int) -> dict[str, Any]:
    # JSON text, since a Parquet column has one type: the rows of a file differ in the keys of
    # `meta` and in their values' types, and a column of None alone has no type at all.
    extra_info = {
        "id": example.id,
        "verifier": example.verifier,
        "where": example.where,
        "index": index,
        "meta": json.dumps(example.meta),
        "demonstration": json.dumps(example.demonstration),
    }
    messages = [dict(message) for message in example.messages]
    return {
        "data_source": example.source,
        "prompt": messages,
        "ability": example.verifier,
        "reward_model": {"style": "rule", "ground_truth": example.answer},
        "extra_info": extra_info,
    }


def write_parquet(examples: Sequence[Example], path: str | Path) -> Path:
    """Write `to_verl_rows(examples)` to `path` (folders are made) and return the path.

    Needs pyarrow, which verl brings.

    Raises:
        DataError: there are no examples.
    """
    # Imported here, since the loaders serve evaluations that have no pyarrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not examples:
        raise DataError("there are no examples to write", where=str(path))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(to_verl_rows(examples)), path)
    return path
