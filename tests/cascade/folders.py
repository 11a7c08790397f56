"""Folders as `caopd eval` leaves them, with answers made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["knows", "saturated", "large"]
FILLED_IN = {"sample": 0, "response": "", "answer": "A", "reason": "correct"}


def write(folder: Path, rows: list[dict[str, Any]], *, name: str | None = None) -> Path:
    """A `rows.jsonl` (and a `metrics.json` with a name); what a row lacks is filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({**FILLED_IN, **row}) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    if name is not None:
        (folder / "metrics.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of such a folder."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def row(
    question: int | str, correct: bool, confidence: float | None = None, **more: Any
) -> dict[str, Any]:
    """One judged answer; the gold answer is A unless `more` says otherwise."""
    return {"id": str(question), "correct": correct, "confidence": confidence, "gold": "A", **more}


def simulated(
    folder: Path, *, n: int, kind: Kind, seed: int = 0, samples: int = 1, latency: bool = True
) -> Path:
    """Answers to n questions of random difficulty d, the same d in every folder.

    Kinds: a small model whose stated confidence is its chance (`knows`), one that always states 1
    (`saturated`), and a large model (`large`), which is right more often on every question.
    """
    difficulties = np.random.default_rng(7).random(n)
    rng = np.random.default_rng(seed)
    rows = []
    for sample in range(samples):
        for question, difficulty in enumerate(difficulties):
            loss = 0.25 if kind == "large" else 0.9
            chance = 1.0 - loss * difficulty
            right = bool(rng.random() < chance)
            confidences = {"knows": round(chance, 2), "saturated": 1.0, "large": None}
            told = {"n_prompt_tokens": 100, "n_tokens": int(50 + 100 * difficulty)}
            if latency:
                base = 1.0 if kind == "large" else 0.1
                told["latency_s"] = base * (1.0 + difficulty)
            rows.append(row(question, right, confidences[kind], sample=sample, **told))
    return write(folder, rows, name=kind)
