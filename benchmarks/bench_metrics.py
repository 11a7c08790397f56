"""Metrics with 2,000 bootstrap resamples on 100,000 rows: limits 30 s on one core and 1 GiB (issue 3).

    python benchmarks/bench_metrics.py [--rows 100000] [--resamples 2000]

The hard case is included: an expected readout, where all 100,000 confidences differ.
"""

from __future__ import annotations

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import resource
import sys
import time

import numpy as np

from caopd_verl.evaluation.intervals.estimates import estimate_readouts
from caopd_verl.evaluation.intervals.noise import noise_floor

LIMIT_S, LIMIT_GIB = 30.0, 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=2000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    p = rng.beta(2, 1, args.rows)
    correct = (rng.random(args.rows) < p**1.5).tolist()
    readouts = {"stated": np.round(p, 2).tolist(), "expected": p.tolist()}
    groups = [i % (args.rows // 8) for i in range(args.rows)]  # eight samples a question
    options = dict(n_bins=10, missing="drop", groups=groups, level=0.95, seed=0)
    out, ok = {}, True
    for name, chosen in {
        "stated": ("stated",),
        "expected": ("expected",),
        "both": ("stated", "expected"),
    }.items():
        wall, cpu = time.monotonic(), time.process_time()
        estimate_readouts(
            {k: readouts[k] for k in chosen}, correct, n_resamples=args.resamples, **options
        )
        out[name] = {
            "wall_s": round(time.monotonic() - wall, 2),
            "cpu_s": round(time.process_time() - cpu, 2),
        }
        ok &= out[name]["cpu_s"] < LIMIT_S
    start = time.process_time()
    noise_floor(readouts["stated"], n_bins=10, groups=groups, n_simulations=1000, seed=0)
    out["noise_floor"] = {"cpu_s": round(time.process_time() - start, 2)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    out |= {"rows": args.rows, "resamples": args.resamples, "peak_gib": round(peak, 3)}
    ok &= peak < LIMIT_GIB
    print(json.dumps({**out, "within_limits": bool(ok)}, indent=2))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
