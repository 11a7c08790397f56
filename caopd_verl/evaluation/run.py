"""`caopd eval`: responses from one of the sources, judged row by row, then `metrics.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.evaluation.metrics.columns import load_columns
from caopd_verl.evaluation.metrics.run_metrics import Outcome, head_of, metrics_of_run
from caopd_verl.evaluation.progress import Progress
from caopd_verl.evaluation.rows.row import Job, Row, jobs_of, make_row, prompt_hash
from caopd_verl.evaluation.rows.store import OTHER_FOLDER, RowStore, read_settings, write_json
from caopd_verl.evaluation.settings import DEFAULTS, Endpoint, Local, Sampling, Summary
from caopd_verl.evaluation.sources import BACKENDS, load_backend
from caopd_verl.run_files import FAILURES, METRICS
from caopd_verl.types import Example

# Rows of a file that are judged between two writes: a file may be larger than memory, and each
# write waits for the disk.
_BATCH = 1000
_FROM_FILE = "responses"


@dataclass
class Request:
    """One evaluation.

    Exactly one of `responses`, `endpoint_url` and `model` alone says where responses come from.
    """

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
        ConfigError, DataError: bad arguments or data.
        EndpointError: the endpoint refuses everything.
    """
    if request.responses is not None:
        return _evaluate_responses(request, request.responses)
    if not request.examples:
        raise ConfigError(
            "no questions", where="--task", expected="a task whose questions are to be asked"
        )
    jobs = jobs_of(request.examples, request.sampling.samples)
    if request.endpoint_url is not None:
        return _evaluate_endpoint(request, request.endpoint_url, jobs)
    return _evaluate_local(request, jobs)


def _evaluate_responses(request: Request, path: Path) -> dict[str, Any]:
    settings = {"source": _FROM_FILE, "file": str(path), "task": request.task}
    # Judging a file again costs nothing, so earlier rows of such a run go. Those of another kind
    # of run may have been paid for: they stay, and the folder is refused.
    before = read_settings(request.output)
    again = request.fresh or before.get("source") == _FROM_FILE
    with RowStore(request.output, settings, fresh=again) as store:
        outcome = _judge_file(request, path, store)
        return _finish(request, store, settings, outcome)


def _judge_file(request: Request, path: Path, store: RowStore) -> Outcome:
    from caopd_verl.evaluation.sources.responses import read_responses

    examples = None
    if request.examples is not None:
        examples = {example.id: example for example in request.examples}
    outcome = Outcome(expected_rows=0)  # counted as the lines are read
    batch: list[Row] = []
    for item in read_responses(path, verifier=request.verifier, examples=examples):
        outcome.expected_rows += 1
        if item.job is None or item.generation is None:
            outcome.unusable += 1
            store.append_failures([{"where": item.where, "error": item.error}])
            continue
        batch.append(make_row(item.job, item.generation))
        if len(batch) == _BATCH:
            store.append(batch)
            batch = []
    store.append(batch)
    if outcome.unusable == outcome.expected_rows:
        failures = store.folder / FAILURES
        raise DataError(
            f"none of the {outcome.expected_rows} lines can be used",
            where=str(path),
            fix=f"see {failures} for the reasons",
        )
    return outcome


def _evaluate_endpoint(request: Request, url: str, jobs: list[Job]) -> dict[str, Any]:
    from caopd_verl.evaluation.sources.client import ChatClient
    from caopd_verl.evaluation.sources.endpoint import run_endpoint

    if not request.model:
        raise ConfigError("the endpoint's model has no name", where="--model")
    settings = {
        "source": "endpoint",
        "endpoint": url,
        "model": request.model,
        "task": request.task,
        **_sampling(request.sampling),
        "extra_body": request.extra_body,
        **_expected(request.endpoint.top_logprobs > 0),
    }
    # Made before the folder is touched: a bad address must leave nothing behind.
    client = ChatClient(
        url,
        request.model,
        sampling=request.sampling,
        endpoint=request.endpoint,
        extra_body=request.extra_body,
    )
    with RowStore(request.output, settings, fresh=request.fresh) as store:
        left = _left(jobs, store)
        outcome = Outcome(len(jobs), last_run=_last_run(store.folder))
        if left:
            done = len(jobs) - len(left)
            with Progress(len(jobs), done, shown=request.progress) as bar:
                run = run_endpoint(left, store, client, on_row=bar.update)
            outcome.last_run = asdict(run)
        return _finish(request, store, settings, outcome)


def _evaluate_local(request: Request, jobs: list[Job]) -> dict[str, Any]:
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
    settings = {
        "source": request.backend,
        "model": request.model,
        "task": request.task,
        **_sampling(request.sampling),
        "dtype": request.local.dtype,
        **_expected(request.local.expected),
        **_only_where_set(request.local),
    }
    with RowStore(request.output, settings, fresh=request.fresh) as store:
        left = _left(jobs, store)
        outcome = Outcome(len(jobs), last_run=_last_run(store.folder))
        if left:  # loading a checkpoint takes minutes: not for a run that is complete already
            make_backend = load_backend(request.backend)
            backend = make_backend(request.model, sampling=request.sampling, local=request.local)
            done = len(jobs) - len(left)
            with Progress(len(jobs), done, shown=request.progress) as bar:
                for rows in _rows_by_batch(backend, left):
                    store.append(rows)
                    bar.update(*rows)
            outcome.last_run = {"asked": len(left), **backend.report()}
        return _finish(request, store, settings, outcome)


def _rows_by_batch(backend: Any, jobs: list[Job]) -> Iterator[list[Row]]:
    for batch in backend.batches(jobs):
        generations = backend.generate(batch)
        pairs = zip(batch, generations, strict=True)
        yield [make_row(job, generation) for job, generation in pairs]


def _expected(asked: bool) -> dict[str, Any]:
    """Which mean `expected_confidence` is, so that no run mixes two kinds."""
    return {"expected": "as decoded"} if asked else {}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """What a row depends on; the number of samples may grow from one run to the next."""
    settings = asdict(sampling)
    del settings["samples"]
    return settings


def _only_where_set(local: Local) -> dict[str, Any]:
    """Settings that came later than others: left out at their default, so that old runs go on."""
    settings: dict[str, Any] = {}
    if local.p_true:
        settings["p_true"] = True
    if local.chat_template_kwargs:
        settings["chat_template_kwargs"] = local.chat_template_kwargs
    return settings


def _left(jobs: list[Job], store: RowStore) -> list[Job]:
    """The jobs that are not on disk yet.

    Raises:
        ConfigError: a question on disk was asked in other words than now.
    """
    left = []
    for job in jobs:
        if job.key not in store.done:
            left.append(job)
        elif store.done[job.key] != prompt_hash(job.example.messages):
            raise ConfigError(
                f"question {job.example.id!r} was asked in other words when its row was written",
                where=str(store.folder),
                fix=OTHER_FOLDER,
            )
    return left


def _last_run(folder: Path) -> dict[str, Any] | None:
    """What the last run that asked for anything did; None where there was none."""
    path = folder / METRICS
    if not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("last_run")


def _finish(
    request: Request, store: RowStore, settings: dict[str, Any], outcome: Outcome
) -> dict[str, Any]:
    head = head_of(_name(request), settings)
    path = store.folder / METRICS
    if not store.done:
        # Written all the same, for what the source says of its run: why everything was refused.
        n_rows = outcome.expected_rows
        counts = {"rows": n_rows, "finished": 0, "failed": n_rows}
        write_json(path, {**head, "counts": counts, "last_run": outcome.last_run})
        raise DataError(
            f"none of the {n_rows} rows could be finished",
            where=str(store.folder),
            fix=f"see {FAILURES} there for the reasons",
        )
    metrics = metrics_of_run(
        load_columns(store.folder),
        store.folder,
        head,
        request.summary,
        outcome,
        compat=request.compat,
        prices=(request.endpoint.price_in, request.endpoint.price_out),
    )
    if store.repaired_bytes:
        metrics["repaired_bytes"] = store.repaired_bytes
    write_json(path, metrics)
    return metrics


def _name(request: Request) -> str:
    """For plots and reports."""
    if request.name or request.model:
        return request.name or str(request.model)
    return request.output.name if request.responses is None else request.responses.stem
