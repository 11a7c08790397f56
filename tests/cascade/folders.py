"""Folders as `caopd eval` leaves them, with answers made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write(folder: Path, rows: list[dict[str, Any]], *, name: str | None = None) -> Path:
    """A `rows.jsonl` (and a `metrics.json` with a name); what a row lacks is filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    full = [
        {"sample": 0, "response": "", "answer": "A", "reason": "correct", **row} for row in rows
    ]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in full), encoding="utf-8"
    )
    if name is not None:
        (folder / "metrics.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    return folder


def row(
    question: int | str, correct: bool, confidence: float | None = None, **more: Any
) -> dict[str, Any]:
    return {"id": str(question), "correct": correct, "confidence": confidence, "gold": "A", **more}


def simulated(
    folder: Path, *, n: int, kind: str, seed: int = 0, samples: int = 1, latency: bool = True
) -> Path:
    """Questions of random difficulty d: a calibrated small model (`knows`), one that always says 1 (`saturated`), or a
    large model (`large`), which is right more often on every question."""
    difficulty, rng = np.random.default_rng(7).random(n), np.random.default_rng(seed)
    rows = []
    for sample in range(samples):
        for i, d in enumerate(difficulty):
            right = bool(rng.random() < (1.0 - 0.25 * d if kind == "large" else 1.0 - 0.9 * d))
            confidence = {"knows": round(1.0 - 0.9 * d, 2), "saturated": 1.0, "large": None}[kind]
            tokens = {"n_prompt_tokens": 100, "n_tokens": int(50 + 100 * d)}
            times = {"latency_s": (1.0 if kind == "large" else 0.1) * (1.0 + d)} if latency else {}
            rows.append(row(i, right, confidence, sample=sample, **tokens, **times))
    return write(folder, rows, name=kind)
