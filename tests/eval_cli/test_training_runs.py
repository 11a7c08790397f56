"""`caopd report`, `plot`, `compare`, `route` and `card` on the folder of a training run."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import pytest

from caopd_verl.cli import BAD_INPUT, OK, main
from caopd_verl.config import EvaluationConfig
from caopd_verl.errors import DataError
from caopd_verl.evaluation.report.training import write_training_report
from caopd_verl.evaluation.rows.results import load_results
from caopd_verl.evaluation.rows.store import iter_rows, rows_path, write_validation
from caopd_verl.evaluation.settings import Summary
from tests.training_folder import (
    RUN,
    measured_run,
    training_run,
    validation_rows,
    write_samples,
)

FAST = ["--n-resamples", "30", "--n-simulations", "30"]
QUICK = Summary(n_resamples=20, n_simulations=20)
ATTACK = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    training_run(folder / "sdpo", name="sdpo")
    measured_run(folder / "sdpo_caopd", name="sdpo_caopd", settings=QUICK, n=40)
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_the_report_of_a_run_has_the_shape_of_an_evaluation_and_its_step(runs, tmp_path):
    rows = rows_path(runs / "sdpo")
    args = ["eval", "--responses", str(rows), "--output", str(tmp_path / "again"), *FAST]
    assert main([*args, "--no-progress"]) == OK
    trained, evaluated = metrics_of(runs / "sdpo"), metrics_of(tmp_path / "again")
    assert trained["step"] == 10 and trained["run"] == RUN
    assert set(trained) - set(evaluated) == {"step"} and not set(evaluated) - set(trained)
    for readout, figures in trained["readouts"].items():
        same = evaluated["readouts"][readout]["metrics"]
        for name, figure in figures["metrics"].items():
            assert figure["value"] == pytest.approx(same[name]["value"], abs=1e-12), name
            assert figure["n"] == same[name]["n"] == 40
    ece = trained["readouts"]["stated"]["metrics"]["ece"]
    assert ece["low"] <= ece["value"] <= ece["high"]
    assert trained["readouts"]["stated"]["noise_floor"]["p95"] > 0


def test_the_run_is_left_with_plots_and_page(runs):
    for name in ("reliability_stated", "reliability_expected", "confidence_stated"):
        assert (runs / "sdpo" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (runs / "sdpo" / "report.html").read_text()
    assert "sdpo, step 10" in page and "Confidently wrong" in page
    worst = [row for row in iter_rows(rows_path(runs / "sdpo")) if not row["correct"]]
    most = max(worst, key=lambda row: row["confidence"])
    assert f"{most['id']}, sample 0: stated {most['confidence']}" in page


def test_the_rows_of_a_run_are_those_of_its_newest_validation(runs, tmp_path):
    assert rows_path(runs / "sdpo").name == "step_000010.jsonl"
    write_validation(validation_rows(n=3, shift=0.0), tmp_path, 9)
    write_validation(validation_rows(n=3, shift=0.0), tmp_path, 1_000_000)
    (tmp_path / "validation" / "step_notes.jsonl").write_text("")
    assert rows_path(tmp_path).name == "step_1000000.jsonl"  # by number, not by name


def test_validations_of_a_run_that_was_started_over_are_gone(tmp_path):
    for step in (10, 20, 30):
        write_validation(validation_rows(n=2, shift=0.0), tmp_path, step)
    write_validation(validation_rows(n=4, shift=0.0), tmp_path, 20)
    left = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert left == ["step_000010.jsonl", "step_000020.jsonl"]
    assert len(list(iter_rows(rows_path(tmp_path)))) == 4


def test_a_folder_with_neither_says_what_was_looked_for(tmp_path, capsys):
    (tmp_path / "validation").mkdir()
    for command in (["report"], ["plot"], ["compare", str(tmp_path)]):
        assert main([*command, str(tmp_path)]) == BAD_INPUT
        said = capsys.readouterr().err
        assert f"{tmp_path}: there are no evaluated rows" in said
        assert "rows.jsonl of a caopd eval run" in said
        assert "validation/step_000050.jsonl (any step) of a training run" in said


def test_a_run_that_goes_on_is_measured_from_its_rows(tmp_path):
    """No metrics.json yet; then one of an earlier step; then one of these very rows."""
    write_validation(validation_rows(n=30, shift=0.0), tmp_path, 5)
    (tmp_path / "run.json").write_text('{"caopd.method": "sdpo"}')
    (first,) = load_results([tmp_path], QUICK)
    assert (first.name, first.metrics["step"]) == (tmp_path.name, 5)
    assert first.metrics["run"] == {"caopd.method": "sdpo"}

    measured_run(tmp_path / "done", name="sdpo", settings=replace(QUICK, n_resamples=25))
    write_validation(validation_rows(n=30, shift=0.3), tmp_path / "done", 15)
    (later,) = load_results([tmp_path / "done"], QUICK)
    assert (later.name, later.metrics["step"], later.metrics["run"]) == ("sdpo", 15, RUN)
    correct = [row["correct"] for row in iter_rows(later.rows)]
    assert later.estimate("stated", "acc").value == pytest.approx(sum(correct) / 30)
    assert later.metrics["settings"]["n_resamples"] == 20

    (tmp_path / "done" / "validation" / "step_000015.jsonl").unlink()
    (finished,) = load_results([tmp_path / "done"], QUICK)
    assert finished.metrics["settings"]["n_resamples"] == 25  # as it was written


def test_broken_metrics_are_an_error_that_says_what_to_do(tmp_path):
    measured_run(tmp_path, name="sdpo", settings=QUICK)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json: the metrics are no JSON") as caught:
        load_results([tmp_path], QUICK)
    assert "remove the file" in (caught.value.fix or "")


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [measured_run(tmp_path / part, name="sdpo", settings=QUICK) for part in "ab"]
    names = [result.name for result in load_results(folders, QUICK)]
    assert names == ["sdpo", f"sdpo ({folders[1]})"]


def test_report_and_plot_go_into_the_runs_folder_unless_told_otherwise(runs, tmp_path, capsys):
    folder = measured_run(tmp_path, name="mine", settings=QUICK)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss/total": 0.5}\n')
    assert main(["report", str(folder), *FAST]) == OK
    assert "mine, step 10" in (folder / "report.html").read_text()
    training = ["--training", str(folder), "--panel", "Loss=loss/total"]
    assert main(["plot", str(folder), *training, "--formats", "svg"]) == OK
    drawn = {path.name for path in (folder / "plots").iterdir()}
    assert {"reliability_stated.svg", "risk_coverage.svg", "training.svg"} <= drawn
    both = [str(runs / "sdpo"), str(runs / "sdpo_caopd")]
    for command in ("report", "plot"):
        assert main([command, *both]) == BAD_INPUT
        assert "--output" in capsys.readouterr().err


def test_two_runs_are_compared_question_by_question(runs, tmp_path, capsys):
    both = [str(runs / "sdpo"), str(runs / "sdpo_caopd")]
    path = tmp_path / "compared.json"
    assert main(["compare", *both, "--n-resamples", "200", "--json", str(path)]) == OK
    assert "40 common questions" in capsys.readouterr().out
    found = json.loads(path.read_text())["against"][both[1]]["acc"]
    shares = [metrics_of(Path(run))["readouts"]["stated"]["metrics"]["acc"] for run in both]
    assert found["difference"] == pytest.approx(shares[1]["value"] - shares[0]["value"])
    assert found["low"] < found["difference"] < found["high"]


def test_a_run_is_a_router_to_another(runs, tmp_path):
    args = ["--small", str(runs / "sdpo"), "--large", str(runs / "sdpo_caopd")]
    args += ["--cost-small", "1", "--cost-large", "10", "--n-resamples", "20"]
    assert main(["route", *args, "--output", str(tmp_path), "--formats", "svg"]) == OK
    route = json.loads((tmp_path / "route.json").read_text())
    assert route["settings"]["large"] == {"sdpo_caopd": str(runs / "sdpo_caopd")}


def test_a_run_makes_a_card_of_its_task(runs, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="the card extra is not installed")
    path = tmp_path / "README.md"
    assert main(["card", str(runs / "sdpo"), "--output", str(path)]) == OK
    entry = hub.ModelCard.load(path).data.eval_results[0]
    assert (entry.dataset_name, entry.dataset_split) == ("arithmetic", "val")


def test_the_page_shows_what_training_sampled(tmp_path):
    folder = measured_run(tmp_path, name="sdpo", settings=QUICK)
    old = {"step": 1, "uid": "1-0", "prompt": "stale"}
    full = {
        "step": 11,
        "uid": "11-0",
        "prompt": f"1+1=? {ATTACK}",
        "response": "3\nConfidence: 0.90",
        "revised": "3\nConfidence: 0.25",
        "target": 0.25,
        "status": "replaced",
        "teacher_prompt": "1+1=?\n\nCorrect solution:",
    }
    untaught = {**full, "uid": "11-1", "teacher_prompt": None, "status": "unsolved"}
    write_samples(folder, 1, [old])
    write_samples(folder, 11, [full, untaught])
    assert main(["report", str(folder), "--examples", "5", *FAST]) == OK
    page = (folder / "report.html").read_text()
    shown = page.split("Sampled in training")[1]
    assert "stale" not in page and "<script" not in page and html.escape(ATTACK) in shown
    assert "step 11, uid 11-0, target 0.25, status replaced" in shown
    assert '<pre class="revised">3\nConfidence: 0.25</pre>' in shown
    assert shown.count('<pre class="teacher_prompt">') == 1
    assert main(["report", str(folder), "--examples", "1", *FAST]) == OK
    assert "11-1" not in (folder / "report.html").read_text()


def test_a_run_without_a_single_confidence_says_so(tmp_path, capsys):
    rows = validation_rows(n=6, shift=0.0)
    unread = {"confidence": None, "confidence_status": "missing", "expected_confidence": None}
    write_validation([{**row, **unread} for row in rows], tmp_path, 1)
    write_training_report(tmp_path, EvaluationConfig(), step=1, name="mute", run=RUN)
    assert "no confidence could be read in 6 responses" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))
    assert "Without a readable confidence" in (tmp_path / "report.html").read_text()
