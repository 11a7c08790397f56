"""Validation: sample, verify, parse, read the expected confidence (by a switch); rows to disk, metrics to the log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caopd_verl.config import EvaluationConfig
from caopd_verl.core.confidence import parse
from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.evaluation.plots.reliability import confidence_histogram, reliability_diagram
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.readouts.expected import (
    expected_confidences,
    string_tokens,
    value_prefix,
)
from caopd_verl.types import RolloutGroup
from caopd_verl.verl_ext.rollout import GroupRollouts

READOUTS = {
    "stated": "confidence",
    "expected": "expected_confidence",
    "expected_t1": "expected_t1_confidence",
}
PLOTTED = ("stated", "expected")
READ_AT_ONCE = (
    4096  # sequences of one readout call, each as long as its response: they travel through Ray
)


def rows_of(groups: Sequence[RolloutGroup]) -> list[dict[str, Any]]:
    """One row for each response: what was asked, answered, judged and stated."""
    rows = []
    for group in groups:
        for index, rollout in enumerate(group.rollouts):
            stated = parse(rollout.text)
            rows.append(
                {
                    "id": group.example.id,
                    "sample": index,
                    "source": group.example.source,
                    "where": group.example.where,
                    "prompt": group.example.messages[-1]["content"],
                    "response": rollout.text,
                    "gold": group.example.answer,
                    "answer": rollout.verdict.answer,
                    "correct": rollout.verdict.correct,
                    "reason": rollout.verdict.reason,
                    "confidence": stated.value,
                    "confidence_status": stated.status,
                    "truncated": rollout.truncated,
                    "n_tokens": len(rollout.token_ids),
                }
            )
    return rows


def add_expected(
    rows: list[dict[str, Any]],
    groups: Sequence[RolloutGroup],
    rollouts: GroupRollouts,
    decoding: Decoding,
) -> None:
    """Add `expected_confidence` (mean over the strings 0.00 .. 1.00 as decoding draws them), `expected_t1_confidence`
    (at temperature 1), `expected_mass`, and a reason where they are absent.

    Exact: single-token continuations of the cached prefix, through the same vLLM servers as the sampling.
    """
    tokenizer = rollouts.tokenizer
    samples = [(group, rollout) for group in groups for rollout in group.rollouts]
    found = [value_prefix(rollout.token_ids, tokenizer) for _, rollout in samples]
    readable = [i for i, prefix in enumerate(found) if prefix.ids is not None]
    prefixes = [[*samples[i][0].prompt_ids, *(found[i].ids or ())] for i in readable]
    leads = [found[i].lead for i in readable]
    cache: dict = {}
    wanted: set[int] = set()
    for prefix, lead in zip(prefixes, leads, strict=True):
        wanted.update(
            t for s in string_tokens(prefix, tokenizer=tokenizer, lead=lead, cache=cache) for t in s
        )
    token_ids = sorted(wanted)
    values = expected_confidences(
        lambda sequences: rollouts.next_token_log_probs(sequences, token_ids),
        prefixes,
        tokenizer=tokenizer,
        decoding=decoding,
        leads=leads,
        max_sequences=READ_AT_ONCE,
    )
    for row, place in zip(rows, found, strict=True):
        row.update(
            expected_confidence=None,
            expected_t1_confidence=None,
            expected_mass=None,
            expected_reason=place.reason,
        )
    for i, value in zip(readable, values, strict=True):
        rows[i].update(
            expected_confidence=value.value,
            expected_t1_confidence=value.value_t1,
            expected_mass=value.mass,
        )


def summarize(
    rows: Sequence[dict[str, Any]], config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Metrics of each readout that the rows carry: `{"stated": {...}, "expected": {...}}`."""
    correct = [row["correct"] for row in rows]
    return {
        name: calibration_metrics(
            [row[key] for row in rows], correct, n_bins=config.n_bins, missing=config.missing
        )
        for name, key in READOUTS.items()
        if rows and key in rows[0]
    }


def flat_metrics(rows: Sequence[dict[str, Any]], config: EvaluationConfig) -> dict[str, float]:
    """The same as one flat dict, `val/<source>/<readout>/<metric>`; undefined metrics are left out, never 0."""
    flat: dict[str, float] = {}
    for source in sorted({row["source"] for row in rows}):
        own = [row for row in rows if row["source"] == source]
        for readout, metrics in summarize(own, config).items():
            flat.update(
                {f"val/{source}/{readout}/{k}": v for k, v in metrics.items() if v is not None}
            )
        flat[f"val/{source}/truncated"] = sum(row["truncated"] for row in own) / len(own)
        flat[f"val/{source}/response_tokens"] = sum(row["n_tokens"] for row in own) / len(own)
    return flat


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """JSONL, one response a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def write_report(
    rows: Sequence[dict[str, Any]], folder: Path, config: EvaluationConfig, *, step: int, name: str
) -> None:
    """`metrics.json`, reliability diagram and confidence histogram of a run's last validation."""
    summary = summarize(rows, config)
    content = {
        "name": name,
        "step": step,
        "missing": config.missing,
        "n_bins": config.n_bins,
        **summary,
    }
    (folder / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    correct = [row["correct"] for row in rows]
    groups = [row["id"] for row in rows]
    for readout in [name for name in summary if name in PLOTTED]:
        values = [row[READOUTS[readout]] for row in rows]
        if all(value is None for value in values):
            print(f"no {readout} confidence could be read in {len(rows)} responses: no plot for it")
            continue
        title, label = f"{name}, step {step}", f"{readout.capitalize()} confidence"
        path = folder / f"reliability_{readout}.png"
        reliability_diagram(
            values, correct, path, title=title, n_bins=config.n_bins, groups=groups, readout=label
        )
        confidence_histogram(
            values, correct, folder / f"confidence_{readout}.png", title=title, readout=label
        )
