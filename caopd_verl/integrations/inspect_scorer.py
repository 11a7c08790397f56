"""Scorer, metrics and data set for Inspect (`inspect_ai`), with a stated confidence.

    from inspect_ai import Task, eval
    from inspect_ai.solver import generate
    from caopd_verl.integrations.inspect_scorer import calibration, samples

    questions = samples("sciknoweval", "train.json")
    task = Task(dataset=questions, solver=generate(), scorer=calibration())
    eval(task, model="openai/gpt-4o-mini", temperature=0.6, top_p=0.95)

The score's value is the verdict (so Inspect's own accuracy works); confidence and how it was parsed
are in its metadata, the verdict's reason is its explanation. The metrics take every sample of every
epoch (`scores="unreduced"`), as a mean over epochs has no single confidence. Undefined is NaN.
"""

from __future__ import annotations

from pathlib import Path

from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    accuracy,
    metric,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState

from caopd_verl.data.registry import load_task
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.integrations.judge import Pair, figure, judge, system_and_question

# Keys of the metadata of scores and samples.
CONFIDENCE, STATUS, VERIFIER = "confidence", "confidence_status", "verifier"


def samples(task: str, path: str | Path) -> MemoryDataset:
    """A file of questions as a data set, with the confidence instruction in the prompt.

    Args:
        task: the name of a task that reads a file: `sciknoweval` or `jsonl`.
        path: of the file.

    Raises:
        ConfigError: unknown task.
        DataError: a row that can't be used, naming `file:line`.
    """
    out = []
    # "test" without a number is the whole file, so that nothing is drawn and the seed is not used.
    for example in load_task(task, path=path, seed=0, n=None, split="test"):
        system, question = system_and_question(example)
        messages = [ChatMessageSystem(content=system)] if system else []
        sample = Sample(
            id=example.id,
            input=[*messages, ChatMessageUser(content=question)],
            target=example.answer,
            metadata={VERIFIER: example.verifier},
        )
        out.append(sample)
    return MemoryDataset(out, name=task, location=str(path))


def pairs(scores: list[SampleScore]) -> list[Pair]:
    """(confidence, correct) of scores that `calibration` gave.

    Raises:
        DataError: another scorer's scores, or scores that were reduced over epochs.
    """
    out: list[Pair] = []
    for item in scores:
        metadata = item.score.metadata or {}
        value = item.score.value
        # The verdict is CORRECT or INCORRECT as the scorer gave it, or the number for it.
        if CONFIDENCE not in metadata or value not in (CORRECT, INCORRECT, 0, 1):
            raise DataError(
                f"the score {value!r} holds no verdict with a confidence",
                where=f"sample {item.sample_id}",
                expected="an unreduced score of the scorer `calibration`",
            )
        out.append((metadata[CONFIDENCE], value in (CORRECT, 1)))
    return out


@metric(scores="unreduced")
def format_adherence() -> Metric:
    """Share of responses with a readable confidence."""
    return _over_pairs("format_adherence")


@metric(scores="unreduced")
def ece() -> Metric:
    """Expected calibration error over equal-width bins."""
    return _over_pairs("ece")


@metric(scores="unreduced")
def brier() -> Metric:
    """Mean squared difference of confidence and verdict."""
    return _over_pairs("brier")


@metric(scores="unreduced")
def ocg() -> Metric:
    """Mean confidence minus accuracy, over the responses with a confidence."""
    return _over_pairs("ocg")


@metric(scores="unreduced")
def spr() -> Metric:
    """P(confidence of a correct response > that of a wrong one)."""
    return _over_pairs("spr")


@metric(scores="unreduced")
def auroc() -> Metric:
    """SPR with half of the ties."""
    return _over_pairs("auroc")


@metric(scores="unreduced")
def tie_rate() -> Metric:
    """P(equal confidences of a correct and a wrong response)."""
    return _over_pairs("tie_rate")


def _over_pairs(name: str) -> Metric:
    # Annotated: Inspect takes a function without the annotation for one of its older protocol.
    def compute(scores: list[SampleScore]) -> float:
        return figure(name, pairs(scores))

    return compute


# Inspect's own two beside the calibration metrics.
METRICS = [
    accuracy(),
    stderr(),
    format_adherence(),
    ece(),
    brier(),
    ocg(),
    spr(),
    auroc(),
    tie_rate(),
]


@scorer(metrics=METRICS)
def calibration(verifier: str | None = None) -> Scorer:
    """Verdict and stated confidence of a response.

    Args:
        verifier: for samples that name none in their metadata (those of `samples` do).

    Raises:
        ConfigError: while scoring, a sample without a verifier.
    """

    async def score(state: TaskState, target: Target) -> Score:
        name = verifier or state.metadata.get(VERIFIER)
        if not isinstance(name, str):
            raise ConfigError(
                f"sample {state.sample_id} names no verifier",
                where="calibration(verifier=...)",
                expected="a verifier's name here or in the sample's metadata",
            )
        judged = judge(state.output.completion, target.text, name)
        value = CORRECT if judged.correct else INCORRECT
        metadata = {CONFIDENCE: judged.confidence, STATUS: judged.confidence_status}
        return Score(
            value=value, answer=judged.answer, explanation=judged.reason, metadata=metadata
        )

    return score
