"""How far the approximate expected readout (an endpoint's top log-probs) is from the exact one, on the same responses.

    caopd eval --endpoint http://127.0.0.1:8000/v1 --model m --task arithmetic --limit 300 -o outputs/endpoint
    python benchmarks/approximate_readout.py outputs/endpoint --model path/to/the/served/checkpoint

Reads the rows of an endpoint's run whose prompts are one user message, and reads each response again with the local
checkpoint, exactly. Prints the distribution of the error and both readouts' figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.evaluation.rows.row import prompt_hash
from caopd_verl.evaluation.rows.store import iter_rows, rows_path
from caopd_verl.evaluation.settings import DEFAULTS, Local, Sampling
from caopd_verl.evaluation.sources.local import TransformersBackend


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    backend = TransformersBackend(args.model, sampling=Sampling(), local=Local(threads=1))
    approximate, exact, mass, correct = [], [], [], []
    rows = list(iter_rows(rows_path(args.run)))
    for row in rows:
        messages = [{"role": "user", "content": row["prompt"]}]
        if prompt_hash(messages) != row["prompt_hash"]:
            raise SystemExit(
                f"{row['id']}: the prompt has other messages than the user's; use a task without them"
            )
        if row["expected_confidence"] is None:
            continue
        ids = backend.tokenizer.encode(row["response"], add_special_tokens=False)
        (found,) = backend.read([backend.prompt_ids(messages)], [ids])
        assert found.value is not None
        approximate.append(row["expected_confidence"])
        mass.append(row["expected_mass"])
        exact.append(found.value)
        correct.append(row["correct"])
    error = np.abs(np.array(approximate) - np.array(exact))
    n_bins = DEFAULTS.summary.n_bins
    print(
        json.dumps(
            {
                "rows": len(rows),
                "without_approximate": len(rows) - len(error),
                "mean_abs_error": round(float(error.mean()), 4),
                "p95_abs_error": round(float(np.quantile(error, 0.95)), 4),
                "max_abs_error": round(float(error.max()), 4),
                "mean_mass_seen": round(float(np.mean(mass)), 4),
                **{
                    name: {
                        k: round(float(figures[k]), 4)
                        for k in ("ece", "brier", "spr")
                        if figures[k] is not None
                    }
                    for name, values in (("approximate", approximate), ("exact", exact))
                    for figures in (
                        calibration_metrics(values, correct, n_bins=n_bins, missing="drop"),
                    )
                },
            }
        )
    )


if __name__ == "__main__":
    main()
