"""How far the approximate expected readout is from the exact one, on the same responses.

The approximate readout sees no more than an endpoint's top log-probs; the exact one has the model.

    caopd eval --endpoint http://127.0.0.1:8000/v1 --model m --task arithmetic --limit 300 \\
        --output outputs/endpoint
    python benchmarks/approximate_readout.py outputs/endpoint --model path/to/the/served/checkpoint

Reads the rows of an endpoint's run whose prompts are one user message, and reads each response
again with the local checkpoint, exactly. Prints the distribution of the error and both readouts'
figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.evaluation.rows.row import prompt_hash
from caopd_verl.evaluation.rows.store import iter_rows, rows_path
from caopd_verl.evaluation.settings import DEFAULTS, Local, Sampling
from caopd_verl.evaluation.sources.local import TransformersBackend

SHOWN = ("ece", "brier", "spr")


def exact_confidence(backend: TransformersBackend, row: Mapping[str, Any]) -> float:
    """The exact expected confidence of a row's response."""
    messages = [{"role": "user", "content": row["prompt"]}]
    # Rows keep the question alone; the hash is of everything that was sent.
    if prompt_hash(messages) != row["prompt_hash"]:
        raise SystemExit(
            f"{row['id']}: the prompt has other messages than the user's; use a task without them"
        )
    ids = backend.tokenizer.encode(row["response"], add_special_tokens=False)
    (found,) = backend.read([backend.prompt_ids(messages)], [ids])
    assert found.value is not None, found.reason
    return found.value


def figures(values: Sequence[float], correct: Sequence[bool]) -> dict[str, float]:
    """Rounded figures of one readout, those that are defined."""
    found = calibration_metrics(
        values, correct, n_bins=DEFAULTS.summary.n_bins, missing=DEFAULTS.summary.missing
    )
    defined = {name: found[name] for name in SHOWN}
    return {name: rounded(value) for name, value in defined.items() if value is not None}


def rounded(value: float | np.floating) -> float:
    """Four decimals are well below the error that is measured."""
    return round(float(value), 4)


def main() -> None:
    """Read the run's responses again and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    backend = TransformersBackend(args.model, sampling=Sampling(), local=Local(threads=1))
    rows = list(iter_rows(rows_path(args.run)))
    with_approximate = [row for row in rows if row["expected_confidence"] is not None]
    approximate = [row["expected_confidence"] for row in with_approximate]
    masses = [row["expected_mass"] for row in with_approximate]
    correct = [row["correct"] for row in with_approximate]
    exact = [exact_confidence(backend, row) for row in with_approximate]
    error = np.abs(np.array(approximate) - np.array(exact))
    result = {
        "rows": len(rows),
        "without_approximate": len(rows) - len(with_approximate),
        "mean_abs_error": rounded(error.mean()),
        "p95_abs_error": rounded(np.quantile(error, 0.95)),
        "max_abs_error": rounded(error.max()),
        "mean_mass_seen": rounded(np.mean(masses)),
        "approximate": figures(approximate, correct),
        "exact": figures(exact, correct),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
