"""Evaluation results as `model-index` metadata of a model card, by huggingface_hub's own classes.

One entry a readout and metric, with the interval, n and the settings in the metric's `args`. An
undefined metric has no entry: the format wants a number. A card that is there already keeps its
text and its other metadata; entries for the same data set, split and metric are replaced.

    caopd card outputs/mine --output README.md --dataset org/data
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.estimates import Estimate
from caopd_verl.evaluation.report.console import SHOWN
from caopd_verl.evaluation.rows.results import Result

TASK = "text-generation"
READOUTS = ("stated", "expected")
# What does not depend on the readout, and the hub's own name for it.
ONCE = {"acc": "accuracy"}
# Few, as a card is read by strangers; the tie rate is there because ties alone can lower an SPR.
METRICS = ("ece", "brier", "ocg", "spr", "auroc", "tie_rate", "format_adherence")


@dataclass(frozen=True)
class Dataset:
    """What a result was measured on; `id` is the hub's name for it, or any text."""

    id: str
    name: str
    split: str | None


def dataset_of(result: Result, *, id: str | None) -> Dataset:
    """The data set of a run, from its settings; `id` overrides.

    Raises:
        ConfigError: the run had no task and no `id` is given.
    """
    # "arithmetic/test", or nothing where finished responses were judged.
    named = str(result.metrics["run"].get("task") or "")
    task, _, split = named.partition("/")
    if not (id or task):
        raise ConfigError(
            f"the settings of the run {result.name} name no data set",
            where="--dataset",
            expected="the data set's name on the hub, or any name",
        )
    return Dataset(id or task, task or str(id), split or None)


def eval_results(result: Result, dataset: Dataset) -> tuple[list[EvalResult], list[str]]:
    """The entries of one run, and why each figure that is missing among them is missing."""
    entries, left_out = [], []
    for readout in READOUTS:
        if readout not in result.metrics["readouts"]:
            left_out.append(f"{readout}: {result.metrics['absent'].get(readout, 'not measured')}")
            continue
        names = (*ONCE, *METRICS) if readout == "stated" else METRICS
        for name in names:
            figure = result.estimate(readout, name)
            if figure.value is None:
                left_out.append(f"{readout}, {SHOWN[name]}: {figure.reason}")
            else:
                settings = _settings(result, readout, name, figure)
                entries.append(_entry(dataset, readout, name, figure.value, settings))
    return entries, left_out


def _entry(
    dataset: Dataset, readout: str, name: str, value: float, settings: dict[str, Any]
) -> EvalResult:
    metric_type, metric_name = name, f"{SHOWN[name]}, {readout} confidence"
    if name in ONCE:
        metric_type, metric_name = ONCE[name], SHOWN[name]
    return EvalResult(
        task_type=TASK,
        dataset_type=dataset.id,
        dataset_name=dataset.name,
        dataset_split=dataset.split,
        metric_type=metric_type,
        metric_name=metric_name,
        metric_value=value,
        metric_args=settings,
    )


def write_card(
    results: Sequence[tuple[Result, Dataset]], path: Path, *, model_name: str | None
) -> tuple[ModelCardData, list[str]]:
    """Write the card, or bring the one at `path` up to date.

    Returns its metadata as read back, and what was left out.

    Args:
        results: runs of one model, each with its data set.
        path: of the README.md.
        model_name: in the metadata; the card's own, or the first result's, otherwise.

    Raises:
        ConfigError: two results with the same data set and split.
        DataError: the file holds no readable model card.
    """
    entries: list[EvalResult] = []
    left_out: list[str] = []
    for result, dataset in results:
        own, missing = eval_results(result, dataset)
        if {_key(entry) for entry in own} & {_key(entry) for entry in entries}:
            raise ConfigError(
                f"two results are of the data set {dataset.id}, split {dataset.split}",
                where="caopd card",
                expected="results of one model on different data",
            )
        entries += own
        left_out += missing
    first_name = results[0][0].name
    card = _load(path) if path.exists() else _new(first_name)
    data = _data(card)
    # The card may hold results of other data sets, or of other tools: they stay.
    replaced = {_key(entry) for entry in entries}
    before = data.eval_results or []
    kept = [entry for entry in before if _key(entry) not in replaced]
    data.eval_results = [*kept, *entries]
    data.model_name = model_name or data.model_name or first_name
    path.parent.mkdir(parents=True, exist_ok=True)
    card.save(path)
    # As read back, so that nothing is reported which the hub could not read from the file.
    return _data(_load(path)), left_out


def _settings(result: Result, readout: str, name: str, figure: Estimate) -> dict[str, Any]:
    """What a reader needs to judge the figure."""
    settings = result.metrics["settings"]
    args = {"n": figure.n, "low": figure.low, "high": figure.high, "level": settings["level"]}
    args |= {"measured_with": f"caopd_verl {result.metrics['caopd_verl']}"}
    if name not in ONCE:
        args |= {"readout": readout, "missing": settings["missing"]}
    floor = result.metrics["readouts"][readout]["noise_floor"]
    # A calibrated model's ECE is above 0 too: without that figure a reader can't tell them apart.
    if name == "ece":
        args |= {"n_bins": settings["n_bins"], "if_calibrated_p95": floor["p95"] if floor else None}
    return {key: value for key, value in args.items() if value is not None}


def _key(entry: EvalResult) -> tuple[Any, ...]:
    return (entry.dataset_type, entry.dataset_split, entry.metric_type, entry.metric_name)


def _new(name: str) -> ModelCard:
    header = ModelCardData(tags=["calibration"]).to_yaml()
    text = f"# {name}\n\nCalibration: see the evaluation results in the metadata.\n"
    return ModelCard(f"---\n{header}\n---\n\n{text}")


def _data(card: ModelCard) -> ModelCardData:
    assert isinstance(card.data, ModelCardData)  # the base class says CardData
    return card.data


def _load(path: Path) -> ModelCard:
    try:
        return ModelCard(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        # A YAML error has many lines; one of this length says where it is.
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"no model card can be read ({reason})",
            where=str(path),
            expected="markdown that begins with YAML between two lines of ---",
        ) from None
