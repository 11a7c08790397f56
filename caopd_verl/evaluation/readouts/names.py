"""The readouts: ways to get a confidence for a response. Their names, row keys and labels.

| name | what it is |
| --- | --- |
| `stated` | the number that the response itself states |
| `expected` | its mean over the model's distribution, as decoding draws from it (`expected`) |
| `expected_t1` | the same mean at temperature 1 |
| `p_true` | the model's probability that its own answer is correct (`p_true`) |
| `answer_probability` | the probability of the answer's tokens |
| `self_consistency` | the share of the question's samples that give the same answer |

A readout's name stands in `metrics.json`, in options and in the names of plots; its key in a row of
`rows.jsonl`; its label on axes and in reports.
"""

from __future__ import annotations

from typing import Literal, get_args

ReadoutName = Literal[
    "stated", "expected", "expected_t1", "p_true", "answer_probability", "self_consistency"
]
READOUT_NAMES: tuple[ReadoutName, ...] = get_args(ReadoutName)

# Keyed by plain strings: names come from options and files, and are checked where they come in.
ROW_KEYS: dict[str, str] = {
    "stated": "confidence",
    "expected": "expected_confidence",
    "expected_t1": "expected_t1_confidence",
    "p_true": "p_true",
    "answer_probability": "answer_probability",
}
"""The key of a row that holds each readout. `self_consistency` has none: it takes several rows."""

LABELS: dict[str, str] = {
    "stated": "Stated confidence",
    "expected": "Expected confidence",
    "expected_t1": "Expected confidence at temperature 1",
    "p_true": "P(True)",
    "answer_probability": "Probability of the answer's tokens",
    "self_consistency": "Agreement among the samples",
}

SELF_CONSISTENCY: ReadoutName = "self_consistency"

TRAINING_READOUTS: tuple[ReadoutName, ...] = ("stated", "expected", "expected_t1")
"""What training's validation reads: the others take further samples or further questions."""

COMPARED_READOUTS: tuple[ReadoutName, ...] = ("stated", "expected")
"""What models are compared by, in plots and tables: every model of this project can have both."""
