"""Metrics with 2,000 bootstrap resamples on 100,000 rows: limits 30 s on one core, and 1 GiB.

    python benchmarks/bench_metrics.py [--rows 100000] [--resamples 2000]

The hard case is included: an expected readout, where all 100,000 confidences differ.
"""

from __future__ import annotations

import argparse
import os

# Before NumPy is imported, which starts its threads then: the limit is for one core.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import resource
import sys
import time

import numpy as np

from caopd_verl.evaluation.intervals.estimates import estimate_readouts
from caopd_verl.evaluation.intervals.noise import noise_floor
from caopd_verl.evaluation.settings import DEFAULTS

LIMIT_S, LIMIT_GIB = 30.0, 1.0
SAMPLES_A_QUESTION = 8
CASES = {
    "stated": ("stated",),
    "expected": ("expected",),
    "both": ("stated", "expected"),
}


def main() -> int:
    """Print times and memory as JSON; 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=2000)
    args = parser.parse_args()
    settings = DEFAULTS.summary
    rng = np.random.default_rng(0)
    chances = rng.beta(2, 1, args.rows)
    correct = (rng.random(args.rows) < chances**1.5).tolist()
    readouts = {"stated": np.round(chances, 2).tolist(), "expected": chances.tolist()}
    n_questions = args.rows // SAMPLES_A_QUESTION
    groups = [row % n_questions for row in range(args.rows)]
    results: dict[str, object] = {}
    slowest = 0.0
    for name, chosen in CASES.items():
        columns = {readout: readouts[readout] for readout in chosen}
        wall, cpu = time.monotonic(), time.process_time()
        estimate_readouts(
            columns,
            correct,
            n_bins=settings.n_bins,
            missing=settings.missing,
            groups=groups,
            n_resamples=args.resamples,
            level=settings.level,
            seed=0,
        )
        wall_s, cpu_s = time.monotonic() - wall, time.process_time() - cpu
        results[name] = {"wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2)}
        slowest = max(slowest, cpu_s)
    begun = time.process_time()
    noise_floor(
        readouts["stated"],
        n_bins=settings.n_bins,
        groups=groups,
        n_simulations=settings.n_simulations,
        seed=0,
    )
    results["noise_floor"] = {"cpu_s": round(time.process_time() - begun, 2)}
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    within = slowest < LIMIT_S and peak_gib < LIMIT_GIB
    results |= {"rows": args.rows, "resamples": args.resamples, "peak_gib": round(peak_gib, 3)}
    print(json.dumps({**results, "within_limits": within}, indent=2))
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
