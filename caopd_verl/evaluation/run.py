"""`caopd eval`: responses from one of the sources, judged row by row, then `metrics.json` and the summary."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.metrics.summary import counts, load_columns, summarize, usage
from caopd_verl.evaluation.rows.row import Job, jobs_of, make_row, prompt_hash
from caopd_verl.evaluation.rows.store import RowStore, read_settings, write_json
from caopd_verl.evaluation.settings import DEFAULTS, Endpoint, Local, Sampling, Summary
from caopd_verl.evaluation.sources import BACKENDS, load_backend
from caopd_verl.types import Example

METRICS = "metrics.json"
_BATCH = 1000


@dataclass
class Request:
    """One evaluation: exactly one of `responses`, `endpoint_url` and `model` alone says where responses come from."""

    output: Path
    responses: Path | None = None
    endpoint_url: str | None = None
    model: str | None = None
    backend: str = "transformers"
    examples: list[Example] | None = None
    task: str | None = None
    verifier: str | None = None
    name: str | None = None
    fresh: bool = False
    compat: bool = False
    progress: bool = True
    sampling: Sampling = field(default_factory=lambda: DEFAULTS.sampling)
    endpoint: Endpoint = field(default_factory=lambda: DEFAULTS.endpoint)
    local: Local = field(default_factory=lambda: DEFAULTS.local)
    summary: Summary = field(default_factory=lambda: DEFAULTS.summary)
    extra_body: dict[str, Any] = field(default_factory=dict)


def evaluate(request: Request) -> dict[str, Any]:
    """Run it; returns what `metrics.json` holds.

    Raises:
        ConfigError, DataError: bad arguments or data. EndpointError: the endpoint refuses everything.
    """
    if request.responses is not None:
        return _evaluate_responses(request)
    if not request.examples:
        raise ConfigError(
            "no questions", where="--task", expected="a task whose questions are to be asked"
        )
    if request.endpoint_url is not None:
        return _evaluate_endpoint(request)
    return _evaluate_local(request)


def _evaluate_responses(request: Request) -> dict[str, Any]:
    from caopd_verl.evaluation.sources.responses import read_responses

    assert request.responses is not None
    examples = (
        None if request.examples is None else {example.id: example for example in request.examples}
    )
    settings = {"source": "responses", "file": str(request.responses), "task": request.task}
    unusable, rows = 0, 0
    # Judging a file again costs nothing, so earlier rows of such a run go; those of another kind of run stay.
    again = request.fresh or read_settings(request.output).get("source") == "responses"
    with RowStore(request.output, settings, fresh=again) as store:
        batch: list[dict[str, Any]] = []
        for item in read_responses(request.responses, verifier=request.verifier, examples=examples):
            rows += 1
            if item.job is None or item.generation is None:
                unusable += 1
                store.append_failures([{"where": item.where, "error": item.error}])
                continue
            batch.append(make_row(item.job, item.generation))
            if len(batch) == _BATCH:
                store.append(batch)
                batch = []
        store.append(batch)
        if unusable == rows:
            raise DataError(
                f"none of the {rows} lines can be used",
                where=str(request.responses),
                fix=f"see {store.folder / 'failures.jsonl'} for the reasons",
            )
        return _finish(request, store, settings, expected_rows=rows, unusable=unusable)


def _evaluate_endpoint(request: Request) -> dict[str, Any]:
    from caopd_verl.evaluation.sources.client import ChatClient
    from caopd_verl.evaluation.sources.endpoint import run_endpoint

    assert request.endpoint_url is not None and request.examples is not None
    if not request.model:
        raise ConfigError("the endpoint's model has no name", where="--model")
    settings = {
        "source": "endpoint",
        "endpoint": request.endpoint_url,
        "model": request.model,
        "task": request.task,
        **_sampling(request.sampling),
        "extra_body": request.extra_body,
        **_expected(request.endpoint.top_logprobs > 0),
    }
    client = ChatClient(
        request.endpoint_url,
        request.model,
        sampling=request.sampling,
        endpoint=request.endpoint,
        extra_body=request.extra_body,
    )
    with RowStore(request.output, settings, fresh=request.fresh) as store:
        jobs, left = _jobs(request, store)
        run = _last_run(store.folder)
        if left:
            with Progress(len(jobs), len(jobs) - len(left), request.progress) as bar:
                run = asdict(run_endpoint(left, store, client, on_row=bar.update))
        return _finish(request, store, settings, expected_rows=len(jobs), run=run)


def _evaluate_local(request: Request) -> dict[str, Any]:
    if not request.model:
        raise ConfigError(
            "there is nothing to evaluate", where="--model", expected="a checkpoint, or --responses"
        )
    if request.backend not in BACKENDS:
        raise ConfigError(
            f"unknown backend {request.backend!r}",
            where="--backend",
            expected=" or ".join(BACKENDS),
        )
    assert request.examples is not None
    settings = {
        "source": request.backend,
        "model": request.model,
        "task": request.task,
        **_sampling(request.sampling),
        "dtype": request.local.dtype,
        **_expected(request.local.expected),
        # only where it is on, so that runs that were begun without it go on
        **({"p_true": True} if request.local.p_true else {}),
    }
    with RowStore(request.output, settings, fresh=request.fresh) as store:
        jobs, left = _jobs(request, store)
        run = _last_run(store.folder)
        if left:
            backend = load_backend(request.backend)(
                request.model, sampling=request.sampling, local=request.local
            )
            with Progress(len(jobs), len(jobs) - len(left), request.progress) as bar:
                for batch in backend.batches(left):
                    rows = [
                        make_row(job, generation)
                        for job, generation in zip(batch, backend.generate(batch), strict=True)
                    ]
                    store.append(rows)
                    bar.update(*rows)
            run = {"asked": len(left), **backend.report()}
        return _finish(request, store, settings, expected_rows=len(jobs), run=run)


def _expected(asked: bool) -> dict[str, Any]:
    """Which mean `expected_confidence` is, so that no run mixes two kinds."""
    return {"expected": "as decoded"} if asked else {}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """What a row depends on; the number of samples may grow from one run to the next."""
    return {key: value for key, value in asdict(sampling).items() if key != "samples"}


def _jobs(request: Request, store: RowStore) -> tuple[list[Job], list[Job]]:
    """All jobs, and those that are not on disk yet.

    Raises:
        ConfigError: a question on disk was asked in other words than now.
    """
    assert request.examples is not None
    jobs = jobs_of(request.examples, request.sampling.samples)
    left = []
    for job in jobs:
        if job.key not in store.done:
            left.append(job)
        elif store.done[job.key] != prompt_hash(job.example.messages):
            raise ConfigError(
                f"question {job.example.id!r} was asked in other words when its row was written",
                where=str(store.folder),
                fix="choose another --output, or start over with --fresh",
            )
    return jobs, left


def _last_run(folder: Path) -> dict[str, Any] | None:
    """What the last run that asked for anything did; None where there was none."""
    path = folder / METRICS
    return json.loads(path.read_text(encoding="utf-8")).get("last_run") if path.exists() else None


def _finish(
    request: Request,
    store: RowStore,
    settings: dict[str, Any],
    *,
    expected_rows: int,
    unusable: int = 0,
    run: dict[str, Any] | None = None,
) -> dict[str, Any]:
    head = {
        "caopd_verl": _version(),
        "name": request.name
        or request.model
        or (request.responses.stem if request.responses else store.folder.name),
        "run": settings,
    }
    if not store.done:
        done = {"rows": expected_rows, "finished": 0, "failed": expected_rows}
        write_json(store.folder / METRICS, {**head, "counts": done, "last_run": run})
        raise DataError(
            f"none of the {expected_rows} rows could be finished",
            where=str(store.folder),
            fix="see failures.jsonl there for the reasons",
        )
    columns = load_columns(store.folder)
    metrics = {
        **head,
        "counts": counts(columns, store.folder, expected_rows=expected_rows, unusable=unusable),
        "usage": usage(
            columns, price_in=request.endpoint.price_in, price_out=request.endpoint.price_out
        ),
        "last_run": run,
        **summarize(columns, request.summary, compat=request.compat),
    }
    if store.repaired_bytes:
        metrics["repaired_bytes"] = store.repaired_bytes
    write_json(store.folder / METRICS, metrics)
    return metrics


def _version() -> str | None:
    try:
        return version("caopd-verl")
    except PackageNotFoundError:  # a checkout that was never installed
        return None


class Progress:
    """A progress bar with rate and time left, and what the rows so far say."""

    def __init__(self, total: int, done: int, shown: bool):
        from tqdm import tqdm

        self.correct = self.finished = self.failed = 0
        self._bar = tqdm(
            total=total, initial=done, unit="row", disable=not shown, dynamic_ncols=True
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, *rows: dict[str, Any] | None) -> None:
        """More rows; None where one failed. Those of a batch in one call, or the time left is the batch's for each."""
        for row in rows:
            if row is None:
                self.failed += 1
            else:
                self.finished += 1
                self.correct += bool(row["correct"])
        note = f"acc {self.correct / self.finished:.2f}" if self.finished else ""
        self._bar.set_postfix_str(
            note + (f", {self.failed} failed" if self.failed else ""), refresh=False
        )
        self._bar.update(len(rows))
