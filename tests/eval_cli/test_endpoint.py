"""`caopd eval --endpoint` against a stub that misbehaves.

No row is lost, none is asked for twice, and the key is nowhere to be seen.
"""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from caopd_verl.cli import BAD_INPUT, INCOMPLETE, OK, main
from tests.eval_cli.stub import FAULTS, Stub

KEY = "sk-very-secret-0123456789"
FAST = "--no-progress --n-resamples 50 --n-simulations 50"
IMPATIENT = "--backoff-s 0.01 --max-backoff-s 0.05 --timeout-s 0.5"


def arguments(stub, output, *more, limit=12):
    question = f"--model stub --task arithmetic --limit {limit} {FAST} {IMPATIENT}"
    return ["eval", "--endpoint", stub.url, "--output", str(output), *question.split(), *more]


def rows_of(output):
    return [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())


def test_rows_and_metrics(tmp_path, capsys):
    with Stub() as stub:
        prices = ("--price-in", "1", "--price-out", "2")
        assert main(arguments(stub, tmp_path / "o", "--samples", "2", *prices)) == OK
    rows, metrics = rows_of(tmp_path / "o"), metrics_of(tmp_path / "o")
    assert len(rows) == 24 == len({(r["id"], r["sample"]) for r in rows})
    assert sum(stub.served.values()) == 24
    row = rows[0]
    assert row["confidence_status"] == "ok" and row["correct"] == (row["answer"] == row["gold"])
    assert row["expected_kind"] == "approximate" and 0 <= row["expected_confidence"] <= 1
    assert row["n_prompt_tokens"] == 40 and row["latency_s"] > 0
    sent = stub.bodies[0]
    # the paper's protocol
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.6, 0.95, 8192)
    assert "Confidence: your confidence level" in sent["messages"][-1]["content"]
    readouts = {"stated", "expected", "answer_probability", "self_consistency"}
    assert set(metrics["readouts"]) == readouts
    usage = metrics["usage"]
    assert usage["prompt_tokens"] == 24 * 40
    assert usage["cost_usd"] == pytest.approx((24 * 40 + 2 * usage["response_tokens"]) / 1e6)
    assert "24 rows: 24 finished" in capsys.readouterr().out


def test_no_figure_depends_on_the_order_in_which_answers_came(tmp_path):
    with Stub() as stub:
        args = arguments(stub, tmp_path / "o", "--samples", "2", limit=30)
        assert main(args) == OK
        first, asked = metrics_of(tmp_path / "o"), sum(stub.asked.values())
        rows = rows_of(tmp_path / "o")
        random.Random(0).shuffle(rows)
        (tmp_path / "o" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert main(args) == OK
        assert sum(stub.asked.values()) == asked == 60
    assert metrics_of(tmp_path / "o")["readouts"] == first["readouts"]
    assert metrics_of(tmp_path / "o")["posthoc"] == first["posthoc"]


def test_a_run_with_nothing_left_keeps_what_the_last_one_did(tmp_path):
    with Stub(["500"]) as stub:
        for _ in range(2):
            assert main(arguments(stub, tmp_path / "o", limit=3)) == OK
            last = metrics_of(tmp_path / "o")["last_run"]
            assert last["asked"] == 3 and sum(last["retries"].values()) == 3
        assert sum(stub.asked.values()) == 6


def test_judging_the_rows_again_keeps_the_answers_probabilities(tmp_path):
    with Stub() as stub:
        assert main(arguments(stub, tmp_path / "o", limit=6)) == OK
    again = ["--responses", str(tmp_path / "o" / "rows.jsonl"), "--output", str(tmp_path / "again")]
    assert main(["eval", *again, *FAST.split()]) == OK
    kept = {row["id"]: row["answer_probability"] for row in rows_of(tmp_path / "o")}
    assert all(p is not None for p in kept.values())
    assert {row["id"]: row["answer_probability"] for row in rows_of(tmp_path / "again")} == kept


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_survived(tmp_path, fault):
    with Stub([fault], retry_after="0.05") as stub:
        assert main(arguments(stub, tmp_path / "o", limit=3)) == OK
        assert len(rows_of(tmp_path / "o")) == 3
        assert set(stub.served.values()) == {1} and set(stub.asked.values()) == {2}
        assert {row["attempts"] for row in rows_of(tmp_path / "o")} == {2}
        assert sum(metrics_of(tmp_path / "o")["last_run"]["retries"].values()) == 3


def test_all_faults_in_a_row_for_every_question(tmp_path):
    faults = [f for f in FAULTS if f != "stall"]
    with Stub(faults) as stub:
        assert main(arguments(stub, tmp_path / "o", "--max-attempts", "20", limit=20)) == OK
    assert len(rows_of(tmp_path / "o")) == 20 and set(stub.served.values()) == {1}


def test_retry_after_holds_for_all_requests(tmp_path):
    first = []

    def fault(question, attempt):
        first.append(question)
        return "429" if len(first) == 1 else "ok"

    with Stub(fault, retry_after="0.6") as stub:
        assert main(arguments(stub, tmp_path / "o", "--concurrency", "1", limit=4)) == OK
    gaps = [b - a for a, b in zip(stub.times, stub.times[1:], strict=False)]
    assert gaps[0] >= 0.6 and max(gaps[1:]) < 0.5


def test_a_pause_that_is_too_long_stops_the_run(tmp_path, capsys):
    with Stub(["429"], retry_after="86400") as stub:
        assert main(arguments(stub, tmp_path / "o")) == BAD_INPUT
    assert "come back in 86400 s" in capsys.readouterr().err


def test_rows_that_cannot_be_finished_are_counted_and_asked_again_later(tmp_path, capsys):
    bad = []

    def fault(question, attempt):
        if attempt == 0 and len(bad) < 3 and question not in bad:
            bad.append(question)
        return "400" if question in bad else "ok"

    with Stub(fault) as stub:
        assert main(arguments(stub, tmp_path / "o")) == INCOMPLETE
        counts = metrics_of(tmp_path / "o")["counts"]
        assert (counts["rows"], counts["not_asked"]) == (12, 0)
        assert (counts["finished"], counts["failed"]) == (9, 3)
        assert counts["why_failed"] == {"HTTP 400: this prompt is too long": 3}
        assert "9 finished, 3 failed" in capsys.readouterr().out
        assert set(stub.asked.values()) == {1}  # a 400 is not retried
        bad.clear()
        bad.extend(["-"] * 3)
        assert main(arguments(stub, tmp_path / "o")) == OK
        assert set(stub.served.values()) == {1}  # finished ones were not asked again
    counts = metrics_of(tmp_path / "o")["counts"]
    assert (counts["finished"], counts["failed"]) == (12, 0)


def test_a_wrong_key_stops_at_once_and_is_never_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with Stub(["401"] * 50) as stub:
        options = ("--api-key-env", "MY_KEY", "--concurrency", "2")
        assert main(arguments(stub, tmp_path / "o", *options)) == BAD_INPUT
        assert sum(stub.asked.values()) <= 4
    said = capsys.readouterr()
    assert "HTTP 401" in said.err and "$MY_KEY" in said.err and "[key]" in said.err
    assert KEY not in said.err + said.out


def test_the_key_is_sent_and_written_nowhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Stub(lambda q, a: "500" if int(q.split("+")[0]) % 2 else "ok") as stub:
        main(arguments(stub, tmp_path / "o", "--max-attempts", "2"))
    assert {h["authorization"] for h in stub.headers} == {f"Bearer {KEY}"}
    said = capsys.readouterr()
    everything = said.out + said.err + "".join(p.read_text() for p in (tmp_path / "o").iterdir())
    assert "oops" in everything and KEY not in everything


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "http://user:pw@127.0.0.1/v1", "http://127.0.0.1/v1?key=1", "nonsense"]
)
def test_addresses_that_would_leak_or_cannot_work(tmp_path, url, capsys):
    args = arguments(type("S", (), {"url": url}), tmp_path / "o")
    assert main(args) == BAD_INPUT
    assert "--endpoint" in capsys.readouterr().err


@pytest.mark.parametrize(("largest", "asked"), [(5, 5), (0, None)])
def test_refused_logprobs_are_lowered_and_noted(tmp_path, largest, asked):
    with Stub(max_logprobs=largest) as stub:
        assert main(arguments(stub, tmp_path / "o", "--concurrency", "3")) == OK
    assert stub.bodies[-1].get("top_logprobs") == asked
    metrics = metrics_of(tmp_path / "o")
    assert "was refused" in metrics["last_run"]["notes"][0]
    assert ("expected" in metrics["readouts"]) == bool(largest)
    if not largest:
        assert metrics["absent"]["expected"] == "the responses came without log-probabilities"


def test_more_samples_and_questions_continue_a_run_other_settings_do_not(tmp_path, capsys):
    with Stub() as stub:
        assert main(arguments(stub, tmp_path / "o", limit=5)) == OK
        assert main(arguments(stub, tmp_path / "o", "--samples", "3", limit=8)) == OK
        assert sum(stub.asked.values()) == 24 == len(rows_of(tmp_path / "o"))
        assert main(arguments(stub, tmp_path / "o", "--temperature", "1.0")) == BAD_INPUT
        assert "temperature was 0.6, is 1.0" in capsys.readouterr().err
        fresh = ("--temperature", "1.0", "--fresh")
        assert main(arguments(stub, tmp_path / "o", *fresh, limit=2)) == OK
    assert len(rows_of(tmp_path / "o")) == 2


def test_concurrency_is_bounded_and_used(tmp_path):
    with Stub(latency=0.05) as stub:
        assert main(arguments(stub, tmp_path / "o", "--concurrency", "5", limit=30)) == OK
    assert stub.open_most == 5


ODD = ["", "x" * 200_000, "Ответ: 五 🙂\nConfidence: 0.7", "\ud800 0.3", "Confidence: 0.1\n" * 40]


@pytest.mark.parametrize("text", ODD, ids=["empty", "long", "scripts", "surrogate", "forty lines"])
def test_odd_responses_become_rows(tmp_path, text):
    with Stub(answer=lambda q, s: text) as stub:
        assert main(arguments(stub, tmp_path / "o", "--top-logprobs", "0", limit=2)) == OK
    counts = metrics_of(tmp_path / "o")["counts"]
    assert counts["finished"] == 2
    assert sum(counts["by_confidence"].values()) == 2


def start(stub, output, *more):
    command = [sys.executable, "-m", "caopd_verl.cli", *arguments(stub, output, *more, limit=120)]
    # A shell starts background jobs with SIGINT ignored, and tests among them hand that on.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heard
    )


def wait_for_rows(output, n):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        path = output / "rows.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.01)
    raise AssertionError("no rows came")


def test_kill_9_in_the_middle_loses_and_repeats_nothing(tmp_path):
    output = tmp_path / "o"
    with Stub(latency=0.1) as stub:
        process = start(stub, output, "--concurrency", "4")
        wait_for_rows(output, 20)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.3)  # answers to requests that were under way
        before = rows_of(output)
        in_flight = sum(stub.asked.values()) - len(before)
        assert len(before) >= 20 and in_flight <= 4
        with (output / "rows.jsonl").open("ab") as file:
            file.write(b'{"id": "torn')  # what a crash in the middle of a line leaves
        assert main(arguments(stub, output, "--concurrency", "8", limit=120)) == OK
        rows = rows_of(output)
        assert rows[: len(before)] == before
        assert len(rows) == 120 == len({row["id"] for row in rows})
        # only what was under way is asked again
        assert sum(stub.asked.values()) == 120 + in_flight
        assert metrics_of(output)["repaired_bytes"] == len(b'{"id": "torn')


def test_a_second_writer_is_refused(tmp_path, capsys):
    output = tmp_path / "o"
    with Stub(latency=0.1) as stub:
        process = start(stub, output, "--concurrency", "2")
        wait_for_rows(output, 4)
        assert main(arguments(stub, output, limit=120)) == BAD_INPUT
        assert "another process is writing" in capsys.readouterr().err
        process.kill()
        process.wait()


def test_interrupting_keeps_finished_rows(tmp_path):
    output = tmp_path / "o"
    with Stub(latency=0.1) as stub:
        process = start(stub, output, "--concurrency", "4")
        wait_for_rows(output, 8)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 130, said
        assert "goes on from there" in said and "Traceback" not in said
        assert len(rows_of(output)) >= 8
