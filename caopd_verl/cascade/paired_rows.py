"""The rows of a small and a large model, aligned by question, with what each answer cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caopd_verl.cascade.routing import Queries
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.metrics.calibration import FloatArray
from caopd_verl.evaluation.metrics.columns import Columns
from caopd_verl.evaluation.rows.results import run_name
from caopd_verl.evaluation.rows.store import iter_rows, rows_path

_TOLD = ("n_prompt_tokens", "n_tokens", "latency_s")


@dataclass(frozen=True)
class Price:
    """What a query costs one of the models: `per_query`, or both prices per million tokens; one unit for both models.

    Raises:
        ConfigError: neither, both, half of the prices, or a figure that is negative or not finite.
    """

    flag: str  # "small" or "large", for messages
    per_query: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        fixed, tokens = (
            self.per_query is not None,
            (self.price_in is not None, self.price_out is not None),
        )
        if fixed == all(tokens) or any(tokens) != all(tokens):
            raise ConfigError(
                f"it is not clear what a query costs the {self.flag} model",
                where=f"--cost-{self.flag}",
                expected=f"either --cost-{self.flag} (per query, any unit) or both --{self.flag}-price-in and "
                f"--{self.flag}-price-out (per million tokens)",
                fix="give the same kind for both models, such as --cost-small 1 --cost-large 10",
            )
        for value in (self.per_query, self.price_in, self.price_out):
            if value is not None and not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(
                    f"a price of {value} can't be",
                    where=f"the {self.flag} model",
                    expected="a number >= 0",
                )

    @property
    def by_tokens(self) -> bool:
        return self.per_query is None


@dataclass
class ModelRows:
    """One result: its columns, and per row the gold answer and the token counts and latency (NaN where not told)."""

    name: str
    folder: Path
    columns: Columns
    gold: list[Any]
    told: dict[str, FloatArray]  # of `_TOLD`, each of shape [n]

    def costs(self, price: Price) -> FloatArray:
        """Cost of each row, shape [n], in the unit of `price`.

        Raises:
            DataError: prices per token, and rows without token counts.
        """
        n = len(self.columns.ids)
        if not price.by_tokens:
            return np.full(n, float(price.per_query or 0.0))
        assert price.price_in is not None and price.price_out is not None
        cost = (
            self.told["n_prompt_tokens"] * price.price_in + self.told["n_tokens"] * price.price_out
        ) / 1e6
        if missing := int(np.isnan(cost).sum()):
            raise DataError(
                f"{missing} of the {n} rows have no token counts",
                where=str(self.folder),
                expected="n_prompt_tokens and n_tokens in every row, as an endpoint or a local checkpoint gives them",
                fix="give a cost per query: --cost-small and --cost-large",
            )
        return cost


def load_model(folder: str | Path) -> ModelRows:
    """The rows of an evaluation's folder, or of a training run's.

    Raises:
        DataError: no rows, a broken line, or a row without a verdict.
    """
    folder, gold = Path(folder), []
    path = rows_path(folder)
    told: dict[str, list[float]] = {key: [] for key in _TOLD}

    def noted() -> Iterator[Mapping[str, Any]]:
        for row in iter_rows(path):
            gold.append(row.get("gold"))
            for key, values in told.items():
                values.append(math.nan if row.get(key) is None else float(row[key]))
            yield row

    columns = Columns.of(noted())
    if not columns.ids:
        raise DataError(
            "there are no evaluated rows",
            where=str(path),
            expected="one judged response a line",
        )
    return ModelRows(
        run_name(folder),
        folder,
        columns,
        [gold[i] for i in columns.order],
        {key: np.array(values)[columns.order] for key, values in told.items()},
    )


@dataclass(frozen=True)
class Aligned:
    """Every small model's queries over the questions that all results have, and how many others each one has."""

    queries: dict[str, Queries]
    questions: list[str]
    left_out: dict[str, int]
    no_latency: dict[str, str]  # small model -> why its cascade has no latency


def align(
    smalls: Sequence[ModelRows],
    large: ModelRows,
    *,
    readout: str,
    price_small: Price,
    price_large: Price,
) -> Aligned:
    """Align by question id. A query is a row of a small model; the large model's outcome, cost and latency for it are
    means over its rows of that question.

    Raises:
        ConfigError: an unknown readout, prices of two kinds, or two results of one name.
        DataError: no question in common; a question with two gold answers; a small model without any score; rows
            without token counts where prices are per token.
    """
    if price_small.by_tokens != price_large.by_tokens:
        raise ConfigError(
            "one model is priced per query, the other per token",
            where="--cost-small",
            fix="use one unit for both",
        )
    everyone = [*smalls, large]
    names = [model.name for model in everyone]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two results have the same name: {', '.join(names)}",
            where="--small",
            fix="use --names",
        )
    common = set(large.columns.ids).intersection(*(model.columns.ids for model in smalls))
    if not common:
        raise DataError(
            "the results have no question in common",
            where=", ".join(str(model.folder) for model in everyone),
            expected="rows with the same ids, from the same task and split",
        )
    _check_gold(everyone, common)
    questions = sorted(common)
    number = {question: i for i, question in enumerate(questions)}
    of_large = _means(large, number, large.costs(price_large))
    queries, no_latency = {}, {}
    for small in smalls:
        queries[small.name] = _queries(small, of_large, number, readout, small.costs(price_small))
        if reason := _no_latency(small, number) or _no_latency(large, number):
            no_latency[small.name] = reason
    left_out = {model.name: len(set(model.columns.ids) - common) for model in everyone}
    return Aligned(queries, questions, left_out, no_latency)


def _means(
    large: ModelRows, number: Mapping[str, int], costs: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Outcome, cost and latency of the large model for each question, shape [questions]; NaN where a row has none."""
    keep = [i for i, question in enumerate(large.columns.ids) if question in number]
    index = np.array([number[large.columns.ids[i]] for i in keep])
    counts = np.bincount(index, minlength=len(number))
    columns = (np.array(large.columns.correct, dtype=np.float64), costs, large.told["latency_s"])
    correct, cost, latency = (
        np.bincount(index, weights=c[keep], minlength=len(number)) / counts for c in columns
    )
    return correct, cost, latency


def _queries(
    small: ModelRows,
    of_large: tuple[FloatArray, FloatArray, FloatArray],
    number: Mapping[str, int],
    readout: str,
    costs: FloatArray,
) -> Queries:
    column = small.columns.column(readout)
    keep = [i for i, question in enumerate(small.columns.ids) if question in number]
    question = np.array([number[small.columns.ids[i]] for i in keep], dtype=np.int64)
    scores = [column.confidence[i] for i in keep]
    for i, value in zip(keep, scores, strict=True):
        if value is not None and not 0.0 <= value <= 1.0:
            raise DataError(
                f"the {readout} confidence is {value}",
                where=f"{small.folder}, row {small.columns.ids[i]!r}",
                expected="a number in [0, 1]",
            )
    if all(value is None for value in scores):
        raise DataError(
            f"none of the {len(keep)} rows has a confidence of the kind {readout!r} to route by",
            where=str(small.folder),
            fix="choose another --readout, or see the run's metrics.json for why it is absent",
        )
    correct, cost, latency = (values[question] for values in of_large)
    return Queries(
        question=question,
        score=np.array([-math.inf if value is None else value for value in scores]),
        small_correct=np.array(small.columns.correct, dtype=np.float64)[keep],
        small_cost=costs[keep],
        small_latency=small.told["latency_s"][keep],
        large_correct=correct,
        large_cost=cost,
        large_latency=latency,
    )


def _no_latency(model: ModelRows, number: Mapping[str, int]) -> str | None:
    used = [
        t
        for t, question in zip(model.told["latency_s"], model.columns.ids, strict=True)
        if question in number
    ]
    missing = int(np.isnan(used).sum())
    return (
        f"{missing} of the {len(used)} rows of {model.name} have no latency_s" if missing else None
    )


def _check_gold(models: Sequence[ModelRows], common: set[str]) -> None:
    """Ids such as `0` may name another question in another task; a gold answer that differs gives that away."""
    seen: dict[str, tuple[Any, str]] = {}
    for model in models:
        for question, gold in zip(model.columns.ids, model.gold, strict=True):
            if question not in common or gold is None:
                continue
            known, other = seen.setdefault(question, (gold, model.name))
            if known != gold:
                raise DataError(
                    f"question {question!r} has the gold answer {gold!r} here and {known!r} in {other}",
                    where=str(model.folder),
                    expected="results of the same task and split",
                )
