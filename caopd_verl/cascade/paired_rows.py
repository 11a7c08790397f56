"""The rows of a small and a large model, aligned by question, with what each answer cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caopd_verl.cascade.prices import Price
from caopd_verl.cascade.routing import Queries
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.metrics.columns import Columns
from caopd_verl.evaluation.metrics.inputs import FloatArray, IntArray
from caopd_verl.evaluation.readouts.names import ReadoutName
from caopd_verl.evaluation.rows.results import run_name
from caopd_verl.evaluation.rows.store import iter_rows, rows_path

# What a row may tell about an answer besides its text.
_TOLD = ("n_prompt_tokens", "n_tokens", "latency_s")


@dataclass
class ModelRows:
    """One model's result.

    Attributes:
        name: as plots and reports call it.
        folder: where the rows come from.
        columns: one entry a row, in the order of question and sample.
        gold: the row's gold answer, one entry a row.
        told: `n_prompt_tokens`, `n_tokens` and `latency_s` (seconds), each of shape [n]; NaN where
            a row does not tell it.
    """

    name: str
    folder: Path
    columns: Columns
    gold: list[Any]
    told: dict[str, FloatArray]

    def costs(self, price: Price) -> FloatArray:
        """Cost of each row, shape [n], in the unit of `price`.

        Raises:
            DataError: prices per token, and rows without token counts.
        """
        n = len(self.columns.ids)
        costs = price.costs(self.told["n_prompt_tokens"], self.told["n_tokens"])
        if missing := int(np.isnan(costs).sum()):
            raise DataError(
                f"{missing} of the {n} rows have no token counts",
                where=str(self.folder),
                expected="n_prompt_tokens and n_tokens in every row, as an endpoint or a local "
                "checkpoint gives them",
                fix="give a cost per query: --cost-small and --cost-large",
            )
        return costs


def load_model(folder: str | Path) -> ModelRows:
    """The rows of an evaluation's folder, or of a training run's.

    Raises:
        DataError: no rows, a broken line, or a row without a verdict.
    """
    folder = Path(folder)
    path = rows_path(folder)
    gold: list[Any] = []
    told: dict[str, list[float]] = {key: [] for key in _TOLD}

    def noted() -> Iterator[Mapping[str, Any]]:
        """The file's rows; what the columns leave out is kept as they pass."""
        for row in iter_rows(path):
            gold.append(row.get("gold"))
            for key, values in told.items():
                value = row.get(key)
                values.append(math.nan if value is None else float(value))
            yield row

    # In one pass, as the texts of a long run need not fit in memory.
    columns = Columns.of(noted())
    if not columns.ids:
        raise DataError(
            "there are no evaluated rows",
            where=str(path),
            expected="one judged response a line",
        )
    # The columns are sorted; `order` says where in the file each of their rows stands.
    order = columns.order
    sorted_gold = [gold[i] for i in order]
    sorted_told = {key: np.array(values)[order] for key, values in told.items()}
    return ModelRows(run_name(folder), folder, columns, sorted_gold, sorted_told)


@dataclass(frozen=True)
class Aligned:
    """Every small model's queries over the questions that all results have.

    Attributes:
        queries: small model -> its rows beside the large model's means.
        questions: ids of the common questions, sorted; `Queries.question` counts them.
        left_out: model -> how many questions it has that another one lacks.
        no_latency: small model -> why its cascade has no latency, if it has none.
    """

    queries: dict[str, Queries]
    questions: list[str]
    left_out: dict[str, int]
    no_latency: dict[str, str]


def align(
    smalls: Sequence[ModelRows],
    large: ModelRows,
    *,
    readout: ReadoutName,
    price_small: Price,
    price_large: Price,
) -> Aligned:
    """Align by question id.

    A query is a row of a small model. The large model's outcome, cost and latency for it are means
    over the large model's rows of that question.

    Raises:
        ConfigError: an unknown readout, prices of two kinds, or two results of one name.
        DataError: no question in common; a question with two gold answers; a small model without
            any score; rows without token counts where prices are per token.
    """
    everyone = [*smalls, large]
    _check_prices(price_small, price_large)
    _check_names(everyone)
    common = _common_questions(everyone)
    _check_gold(everyone, common)
    # Sorted, so that the resamples do not depend on the order of the files.
    questions = sorted(common)
    number = {question: i for i, question in enumerate(questions)}
    outcomes = _outcomes(large, number, large.costs(price_large))
    queries: dict[str, Queries] = {}
    no_latency: dict[str, str] = {}
    for small in smalls:
        costs = small.costs(price_small)
        queries[small.name] = _queries(small, outcomes, number, readout, costs)
        reason = _no_latency(small, number) or _no_latency(large, number)
        if reason is not None:
            no_latency[small.name] = reason
    left_out = {}
    for model in everyone:
        others = set(model.columns.ids) - common
        left_out[model.name] = len(others)
    return Aligned(queries, questions, left_out, no_latency)


def _check_prices(small: Price, large: Price) -> None:
    if small.by_tokens != large.by_tokens:
        raise ConfigError(
            "one model is priced per query, the other per token",
            where="--cost-small",
            fix="use one unit for both",
        )


def _check_names(models: Sequence[ModelRows]) -> None:
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two results have the same name: {', '.join(names)}",
            where="--small",
            fix="use --names",
        )


def _common_questions(models: Sequence[ModelRows]) -> set[str]:
    """Ids of the questions that all of the results have."""
    common = set.intersection(*(set(model.columns.ids) for model in models))
    if not common:
        raise DataError(
            "the results have no question in common",
            where=", ".join(str(model.folder) for model in models),
            expected="rows with the same ids, from the same task and split",
        )
    return common


def _check_gold(models: Sequence[ModelRows], common: set[str]) -> None:
    """Ids such as `0` may name another question in another task; the gold answers tell."""
    seen: dict[str, tuple[Any, str]] = {}
    for model in models:
        for question, gold in zip(model.columns.ids, model.gold, strict=True):
            if question not in common or gold is None:
                continue
            known, other = seen.setdefault(question, (gold, model.name))
            if known != gold:
                what = f"question {question!r} has the gold answer {gold!r} here"
                raise DataError(
                    f"{what} and {known!r} in {other}",
                    where=str(model.folder),
                    expected="results of the same task and split",
                )


@dataclass(frozen=True)
class _Outcomes:
    """Means of the large model for each question, shape [questions]; NaN where a row has none."""

    correct: FloatArray
    cost: FloatArray
    latency: FloatArray


def _places(model: ModelRows, number: Mapping[str, int]) -> tuple[list[int], IntArray]:
    """The model's rows of the numbered questions, and each one's number; both of one length."""
    ids = model.columns.ids
    rows = [i for i, question in enumerate(ids) if question in number]
    numbers = [number[ids[i]] for i in rows]
    return rows, np.array(numbers, dtype=np.int64)


def _outcomes(large: ModelRows, number: Mapping[str, int], costs: FloatArray) -> _Outcomes:
    rows, numbers = _places(large, number)
    counts = np.bincount(numbers, minlength=len(number))

    def mean(column: FloatArray) -> FloatArray:
        sums = np.bincount(numbers, weights=column[rows], minlength=len(number))
        return sums / counts

    correct = np.array(large.columns.correct, dtype=np.float64)
    return _Outcomes(mean(correct), mean(costs), mean(large.told["latency_s"]))


def _queries(
    small: ModelRows,
    large: _Outcomes,
    number: Mapping[str, int],
    readout: ReadoutName,
    costs: FloatArray,
) -> Queries:
    confidence = small.columns.column(readout).confidence
    rows, numbers = _places(small, number)
    stated = [confidence[i] for i in rows]
    _check_scores(small, rows, stated, readout)
    scores = [-math.inf if score is None else score for score in stated]
    correct = np.array(small.columns.correct, dtype=np.float64)
    return Queries(
        question=numbers,
        score=np.array(scores),
        small_correct=correct[rows],
        small_cost=costs[rows],
        small_latency=small.told["latency_s"][rows],
        large_correct=large.correct[numbers],
        large_cost=large.cost[numbers],
        large_latency=large.latency[numbers],
    )


def _check_scores(
    small: ModelRows, rows: Sequence[int], scores: Sequence[float | None], readout: ReadoutName
) -> None:
    for row, score in zip(rows, scores, strict=True):
        if score is not None and not 0.0 <= score <= 1.0:
            question = small.columns.ids[row]
            raise DataError(
                f"the {readout} confidence is {score}",
                where=f"{small.folder}, row {question!r}",
                expected="a number in [0, 1]",
            )
    if all(score is None for score in scores):
        folder = str(small.folder)
        raise DataError(
            f"none of the {len(rows)} rows has a confidence of the kind {readout!r} to route by",
            where=folder,
            fix="choose another --readout, or see the run's metrics.json for why it is absent",
        )


def _no_latency(model: ModelRows, number: Mapping[str, int]) -> str | None:
    """Why the model's rows have no latency; None where each of them has one."""
    rows, _ = _places(model, number)
    missing = int(np.isnan(model.told["latency_s"][rows]).sum())
    if not missing:
        return None
    return f"{missing} of the {len(rows)} rows of {model.name} have no latency_s"
