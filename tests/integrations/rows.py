"""Questions and answers that the harnesses' tests share, and what `evaluation.metrics` says.

The answers are of every kind: right and wrong, with a confidence, with a malformed one, with none.
"""

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
    texts = []
    for letter, confidence in zip(LETTERS, CONFIDENCES, strict=True):
        line = "" if confidence is None else f"\nConfidence: {confidence}"
        texts.append(f"<answer>{letter}</answer>{line}")
    return texts


def write_questions(path):
    """A SciKnowEval file with a question for each answer; returns `path`."""
    lines = []
    for number in range(len(LETTERS)):
        prompt = f"Question {number}?\n\nA: yes\nB: no\n"
        row = {"idx": number, "answer": "A", "prompt": prompt, "system": SYSTEM}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


def expected():
    """The metrics by hand-parsed confidences."""
    values = [0.9, 0.8, 0.8, 0.95, 0.3, None, 0.8, None, 0.6, 1.0]
    verdicts = [letter == "A" for letter in LETTERS]
    summary = DEFAULTS.summary
    return calibration_metrics(values, verdicts, n_bins=summary.n_bins, missing=summary.missing)
