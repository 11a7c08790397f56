"""Questions and canned answers that the harnesses' tests share, and what `evaluation.metrics` says of them."""

import json

from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.evaluation.settings import DEFAULTS

SYSTEM = (
    "Respond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\n"
)
CONFIDENCES = ("0.9", "0.8", "0.8", "95%", "0.3", None, "0.8", "high", "0.6", "1.0")
LETTERS = "ABAABBAABA"  # A is right
PAIRED = ("ece", "brier", "ocg", "spr", "auroc", "tie_rate")


def responses():
    """One answer a question."""
    lines = ["" if c is None else f"\nConfidence: {c}" for c in CONFIDENCES]
    return [f"<answer>{letter}</answer>{line}" for letter, line in zip(LETTERS, lines, strict=True)]


def write_questions(path):
    """A SciKnowEval file with a question for each answer; returns `path`."""
    rows = [
        {"idx": i, "answer": "A", "prompt": f"Question {i}?\n\nA: yes\nB: no\n", "system": SYSTEM}
        for i in range(len(LETTERS))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def expected():
    """The metrics by hand-parsed confidences."""
    values = [0.9, 0.8, 0.8, 0.95, 0.3, None, 0.8, None, 0.6, 1.0]
    summary = DEFAULTS.summary
    return calibration_metrics(
        values, [x == "A" for x in LETTERS], n_bins=summary.n_bins, missing=summary.missing
    )
