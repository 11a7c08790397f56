"""What the metrics need of a run's rows, column by column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.intervals.compare import Column
from caopd_verl.evaluation.metrics.posthoc import self_consistency
from caopd_verl.evaluation.metrics.reference_rule import reference_confidence
from caopd_verl.evaluation.readouts.names import ROW_KEYS, SELF_CONSISTENCY
from caopd_verl.evaluation.rows.store import iter_rows, rows_path

Readouts = dict[str, list["float | None"]]
# Not every row has them: endpoints may report no usage, and training knows no latency.
_USAGE = ("n_prompt_tokens", "n_tokens", "latency_s")


@dataclass
class Columns:
    """One entry a row; the texts are not kept.

    Rows are in the order of their keys, so that no figure, resampled ones included, depends on the
    order in which answers came.

    Attributes:
        ids, samples, sources, correct, answers: of the rows' own keys.
        readouts: name -> confidences, None where a row has none.
        reference: confidence and verdict on the format as the paper's code reads the response.
        counts: what is counted (`verdict`, `confidence`, `response`, ...) -> value -> rows.
        usage: token counts and latencies of the rows that told them.
        order: places of the rows in the file they came from, shape [n].
    """

    ids: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    readouts: Readouts = field(default_factory=lambda: {name: [] for name in ROW_KEYS})
    reference: list[tuple[float, str]] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    usage: dict[str, list[float]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Columns:
        """Raises `DataError` for a row without a verdict."""
        columns = cls()
        for row in rows:
            columns._add(row)
        columns._sort()
        consistency = self_consistency(columns.ids, columns.answers)
        if any(value is not None for value in consistency):
            columns.readouts[SELF_CONSISTENCY] = consistency
        return columns

    def column(self, readout: str) -> Column:
        """One readout, for `intervals.compare`. Raises `ConfigError` for an unknown one."""
        if readout not in self.readouts:
            raise ConfigError(
                f"no readout {readout!r}", expected="one of " + ", ".join(self.readouts)
            )
        return Column(self.ids, self.readouts[readout], self.correct)

    def present(self) -> Readouts:
        """The readouts of which at least one row has a value, and `stated` always.

        Without `expected_t1` where it is the same as `expected`: at temperature 1 it has nothing
        to add.
        """
        found = {}
        for name, values in self.readouts.items():
            if name == "stated" or any(value is not None for value in values):
                found[name] = values
        if found.get("expected_t1") == found.get("expected"):
            found.pop("expected_t1", None)
        return found

    def _add(self, row: Mapping[str, Any]) -> None:
        if not isinstance(row.get("correct"), bool):
            raise DataError(
                "the row has no verdict", where=f"row {row.get('id')!r}", expected="'correct'"
            )
        # Keys other than `id` and `correct` may be absent: rows of older versions are read too.
        response = str(row.get("response", ""))
        self.ids.append(str(row["id"]))
        self.samples.append(int(row.get("sample", 0)))
        self.sources.append(str(row.get("source", "")))
        self.correct.append(row["correct"])
        self.answers.append(row.get("answer"))
        self.reference.append(reference_confidence(response))
        for name, key in ROW_KEYS.items():
            self.readouts[name].append(row.get(key))
        self._count_row(row, response)

    def _count_row(self, row: Mapping[str, Any], response: str) -> None:
        self._count("verdict", row.get("reason"))
        self._count("confidence", row.get("confidence_status"))
        self._count("response", _state(response, row.get("truncated")))
        if row.get("expected_confidence") is None:
            self._count("no_expected_confidence", row.get("expected_reason"))
        if row.get("p_true") is None:
            self._count("no_p_true", row.get("p_true_reason") or "the file holds none")
        for key in _USAGE:
            value = row.get(key)
            if value is not None:
                self.usage.setdefault(key, []).append(float(value))

    def _count(self, what: str, value: object) -> None:
        self.counts.setdefault(what, Counter())[str(value)] += 1

    def _sort(self) -> None:
        keys = list(zip(self.ids, self.samples, strict=True))
        self.order = sorted(range(len(keys)), key=keys.__getitem__)
        lists: list[list] = [self.ids, self.samples, self.sources]
        lists += [self.answers, self.correct, self.reference]
        lists += self.readouts.values()
        for values in lists:
            values[:] = [values[place] for place in self.order]


def load_columns(folder: str | Path) -> Columns:
    """The columns of a run: of the rows that `rows_path` finds.

    Raises:
        DataError: no rows, or a broken line, naming `file:line`.
    """
    path = rows_path(folder)
    columns = Columns.of(iter_rows(path))
    if not columns.ids:
        raise DataError(
            "there are no evaluated rows",
            where=str(path),
            expected="one judged response a line",
            fix="see the run's failures.jsonl, if there is one, for the reasons",
        )
    return columns


def _state(response: str, truncated: object) -> str:
    if truncated is True:
        return "truncated"
    return "complete" if response.strip() else "empty"
