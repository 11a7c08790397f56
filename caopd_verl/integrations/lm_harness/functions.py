"""What the tasks' YAML files name: the questions, the judging of a response, and the metrics.

The harness collects for each metric one item a document and hands the list to an aggregation.
Accuracy and format adherence are means of numbers; the others need the whole list of (confidence,
correct) pairs. Undefined is NaN, never 0. The harness has standard errors for means only: take
intervals from `caopd eval`, whose format its logged samples nearly have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets

from caopd_verl.data.registry import load_task
from caopd_verl.errors import ConfigError
from caopd_verl.integrations.judge import Pair, figure, judge, system_and_question
from caopd_verl.types import Example

DATA_KEY = "caopd_data"
PAIR_METRICS = ("ece", "brier", "ocg", "spr", "auroc", "tie_rate")


def load_sciknoweval(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of a SciKnowEval file as the split "test".

    Args:
        metadata: the harness's, with the path in `caopd_data`.

    Raises:
        ConfigError: no path.
        DataError: a row that can't be used, naming `file:line`.
    """
    return _load("sciknoweval", metadata)


def load_jsonl(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The same for a user's own questions (`data.jsonl`)."""
    return _load("jsonl", metadata)


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """One document's items: numbers for `acc` and `format_adherence`, pairs for the rest."""
    judged = judge(results[0], doc["gold"], doc["verifier"])
    stated = judged.confidence is not None
    # Each of these aggregations takes the same pairs, as the harness keeps one list a metric.
    pairs = dict.fromkeys(PAIR_METRICS, judged.pair)
    return {"acc": float(judged.correct), "format_adherence": float(stated), **pairs}


def ece(pairs: Sequence[Pair]) -> float:
    """Expected calibration error over equal-width bins."""
    return figure("ece", pairs)


def brier(pairs: Sequence[Pair]) -> float:
    """Mean squared difference of confidence and verdict."""
    return figure("brier", pairs)


def ocg(pairs: Sequence[Pair]) -> float:
    """Mean confidence minus accuracy."""
    return figure("ocg", pairs)


def spr(pairs: Sequence[Pair]) -> float:
    """P(confidence of a correct response > that of a wrong one)."""
    return figure("spr", pairs)


def auroc(pairs: Sequence[Pair]) -> float:
    """SPR with half of the ties."""
    return figure("auroc", pairs)


def tie_rate(pairs: Sequence[Pair]) -> float:
    """P(equal confidences of a correct and a wrong response)."""
    return figure("tie_rate", pairs)


def _load(task: str, metadata: dict[str, Any]) -> dict[str, datasets.Dataset]:
    path = metadata.get(DATA_KEY)
    if not isinstance(path, str):
        raise ConfigError(
            "the task has no data file",
            where="--metadata",
            expected=f'{{"{DATA_KEY}": "path of the file"}}',
        )
    # "test" without a number is the whole file, so that nothing is drawn and the seed is not used.
    examples = load_task(task, path=path, seed=0, n=None, split="test")
    return {"test": datasets.Dataset.from_list([_document(example) for example in examples])}


def _document(example: Example) -> dict[str, str]:
    system, question = system_and_question(example)
    return {
        "id": example.id,
        "system": system,
        "question": question,
        "gold": example.answer,
        "verifier": example.verifier,
    }
