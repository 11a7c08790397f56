"""`caopd eval --responses`: every line is accounted for; no torch, verl or Ray is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caopd_verl.cli import BAD_INPUT, INCOMPLETE, OK, main
from tests.eval_cli.stub import Stub

EXAMPLE = Path(__file__).parents[2] / "examples" / "responses.jsonl"
FAST = ["--n-resamples", "20", "--n-simulations", "20", "--no-progress"]


def write(path, rows):
    path.write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n", encoding="utf-8"
    )
    return path


def answer(letter="B", confidence="0.8", **more):
    return {
        "response": f"<answer>{letter}</answer>\nConfidence: {confidence}",
        "answer": "B",
        **more,
    }


def run(path, output, *more):
    return main(["eval", "--responses", str(path), "--output", str(output), *FAST, *more])


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())


def test_rows_counts_and_metrics(tmp_path, capsys):
    rows = [answer(id=i, confidence=f"{0.1 * (i % 10):.1f}", letter="BC"[i % 2]) for i in range(40)]
    assert (
        run(
            write(tmp_path / "r.jsonl", rows),
            tmp_path / "o",
            "--verifier",
            "multiple_choice",
            "--compat",
        )
        == OK
    )
    metrics = metrics_of(tmp_path / "o")
    assert (
        metrics["counts"]["finished"] == 40
        and metrics["readouts"]["stated"]["metrics"]["acc"]["value"] == 0.5
    )
    assert metrics["readouts"]["stated"]["noise_floor"]["mean"] > 0
    assert metrics["compat"]["n"] == 40
    assert set(metrics["posthoc"]["methods"]) == {"raw", "temperature", "platt", "isotonic"}
    said = capsys.readouterr().out
    assert "if calibrated" in said and "as the paper's code counts" in said


def test_every_bad_line_is_counted_with_its_reason(tmp_path, capsys):
    rows = [
        answer(id="a"),
        "{broken",
        "[1, 2]",
        {"id": "c", "answer": "B"},
        {"id": "d", "response": "x"},
        {**answer(id="e"), "answer": "BB"},
        answer(id="f", verifier="nonsense"),
        answer(id="g", sample=0),
        answer(id="g", sample=0),
        {**answer(id="g"), "answer": "C"},
        answer(id={"no": 1}),
        '{"id": "h", "response": "\\ud800 <answer>B</answer>", "answer": "B"}',
        answer(id="i", sample=-1),
        "",
        {"id": "j", "response": "", "answer": "B"},
    ]
    path = write(tmp_path / "r.jsonl", rows)
    assert run(path, tmp_path / "o", "--verifier", "multiple_choice") == INCOMPLETE
    counts = metrics_of(tmp_path / "o")["counts"]
    assert (counts["rows"], counts["finished"], counts["unusable"], counts["not_asked"]) == (
        14,
        4,
        10,
        0,
    )
    failures = [
        json.loads(line) for line in (tmp_path / "o" / "failures.jsonl").read_text().splitlines()
    ]
    assert [f["where"].rpartition(":")[2] for f in failures] == [
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "9",
        "10",
        "11",
        "13",
    ]
    assert "is there twice" in failures[6]["error"] and "another question" in failures[7]["error"]
    assert counts["by_response"] == {"complete": 3, "empty": 1}
    assert "10 unusable" in capsys.readouterr().out


def test_the_example_file(tmp_path):
    """The README's first snippet: 42 made-up rows."""
    assert run(EXAMPLE, tmp_path / "o") == OK
    metrics = metrics_of(tmp_path / "o")
    assert (metrics["n_rows"], metrics["n_questions"]) == (42, 14)
    assert metrics["counts"]["by_confidence"] == {"ok": 40, "missing": 1, "malformed": 1}
    assert (
        metrics["readouts"]["stated"]["metrics"]["ocg"]["low"] > 0
    )  # overconfident, as it is meant to be
    assert "self_consistency" in metrics["readouts"]


def test_nothing_usable_is_an_error(tmp_path, capsys):
    assert run(write(tmp_path / "r.jsonl", ["{"]), tmp_path / "o") == BAD_INPUT
    assert run(tmp_path / "none.jsonl", tmp_path / "p") == BAD_INPUT
    said = capsys.readouterr().err
    assert "none of the 1 lines can be used" in said and "can't be read" in said


def test_samples_of_one_question_are_numbered_and_agree(tmp_path):
    rows = [answer(prompt="Which?", letter="BBC"[i % 3], confidence="0.9") for i in range(3)]
    rows += [answer(prompt="What?") for _ in range(2)]
    assert (
        run(write(tmp_path / "r.jsonl", rows), tmp_path / "o", "--verifier", "multiple_choice")
        == OK
    )
    metrics = metrics_of(tmp_path / "o")
    assert (metrics["n_rows"], metrics["n_questions"]) == (5, 2)
    found = [json.loads(line) for line in (tmp_path / "o" / "rows.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in found] == [0, 1, 2, 0, 1]
    assert metrics["readouts"]["self_consistency"]["metrics"]["mean_conf"][
        "value"
    ] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1 + 1) / 5)


def test_own_rows_can_be_judged_again_and_mixed_tasks_are_kept_apart(tmp_path):
    rows = [answer(id=f"m{i}", source="mc", verifier="multiple_choice") for i in range(5)]
    rows += [
        {
            "id": f"a{i}",
            "response": f"{i + 2}\nConfidence: 0.5",
            "answer": str(i + 2),
            "verifier": "arithmetic",
            "source": "sum",
        }
        for i in range(5)
    ]
    assert run(write(tmp_path / "r.jsonl", rows), tmp_path / "o") == OK
    first = metrics_of(tmp_path / "o")
    assert set(first["by_source"]) == {"mc", "sum"}
    assert run(tmp_path / "o" / "rows.jsonl", tmp_path / "again") == OK
    again = metrics_of(tmp_path / "again")
    assert again["readouts"]["stated"]["metrics"] == first["readouts"]["stated"]["metrics"]


def test_gold_answers_can_come_from_a_task(tmp_path):
    task = write(
        tmp_path / "task.jsonl",
        [{"id": "x", "prompt": "2+3=?", "answer": "5", "verifier": "arithmetic"}],
    )
    rows = [
        {"id": "x", "response": "5\nConfidence: 1.0"},
        {"id": "y", "response": "5"},
        {"response": "5"},
    ]
    args = ("--task", "jsonl", "--data", str(task))
    assert run(write(tmp_path / "r.jsonl", rows), tmp_path / "o", *args) == INCOMPLETE
    counts = metrics_of(tmp_path / "o")["counts"]
    assert (counts["finished"], counts["unusable"]) == (1, 2)


def test_a_paid_run_is_not_thrown_away_for_a_file(tmp_path, capsys):
    with Stub() as stub:
        endpoint = [
            "eval",
            "--endpoint",
            stub.url,
            "--model",
            "m",
            "--task",
            "arithmetic",
            "--limit",
            "2",
        ]
        assert main([*endpoint, "--output", str(tmp_path / "o"), *FAST]) == OK
    before = (tmp_path / "o" / "rows.jsonl").read_bytes()
    path = write(tmp_path / "r.jsonl", [answer()])
    assert run(path, tmp_path / "o", "--verifier", "multiple_choice") == BAD_INPUT
    assert "other settings" in capsys.readouterr().err
    assert (tmp_path / "o" / "rows.jsonl").read_bytes() == before


def test_ten_megabytes_and_forty_confidence_lines(tmp_path):
    long = {
        **answer(id="long"),
        "response": "x" * 10_000_000 + "<answer>B</answer>\nConfidence: 0.4",
    }
    many = {
        **answer(id="many"),
        "response": "<answer>B</answer>\n" + "Confidence: 0.3\n" * 39 + "Confidence: 0.7",
    }
    assert (
        run(
            write(tmp_path / "r.jsonl", [long, many]),
            tmp_path / "o",
            "--verifier",
            "multiple_choice",
        )
        == OK
    )
    found = [json.loads(line) for line in (tmp_path / "o" / "rows.jsonl").read_text().splitlines()]
    assert [row["confidence"] for row in found] == [0.4, 0.7] and all(
        row["correct"] for row in found
    )


@pytest.mark.parametrize(
    "args", [["--temperature", "-1"], ["--samples", "0"], ["--extra-body", "[]"], ["--data", "x"]]
)
def test_bad_options_say_where(tmp_path, args, capsys):
    assert main(["eval", "--model", "m", "--output", str(tmp_path), *args]) == BAD_INPUT
    assert "--" in capsys.readouterr().err


def test_compare_and_readouts(tmp_path, capsys):
    for name, wrong in (("a", 3), ("b", 2)):
        rows = [
            answer(id=i, letter="C" if i % wrong == 0 else "B", confidence="0.9")
            for i in range(240)
        ]
        assert (
            run(
                write(tmp_path / f"{name}.jsonl", rows),
                tmp_path / name,
                "--verifier",
                "multiple_choice",
            )
            == OK
        )
    capsys.readouterr()
    args = [
        "compare",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "--n-resamples",
        "100",
        "--json",
        str(tmp_path / "c.json"),
    ]
    assert main(args) == OK
    assert "worse" in capsys.readouterr().out
    saved = json.loads((tmp_path / "c.json").read_text())["against"][str(tmp_path / "b")]
    assert saved["acc"]["verdict"] == "worse" and saved["acc"]["difference"] == pytest.approx(
        -1 / 6
    )
    assert main(["compare", str(tmp_path / "a")]) == BAD_INPUT
    assert (
        main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--readout", "dreams"])
        == BAD_INPUT
    )


BLOCK = """
import sys
HEAVY = ("torch", "verl", "ray", "vllm", "transformers", "omegaconf", "hydra")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
from caopd_verl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_files_and_endpoints_need_neither_torch_nor_verl_nor_ray(tmp_path):
    path = write(tmp_path / "r.jsonl", [answer(id=i, letter="BC"[i % 2]) for i in range(10)])
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    with Stub() as stub:
        file = ["--responses", str(path), "--verifier", "multiple_choice", "-o", first]
        endpoint = ["--endpoint", stub.url, "--model", "m", "--task", "arithmetic", "-o", second]
        commands = [
            ["eval", *file, *FAST],
            ["eval", *endpoint, "--limit", "9", *FAST],
            ["compare", first, first, "--n-resamples", "9"],
            ["report", first, second, "-o", str(tmp_path / "r.html"), "--n-resamples", "9"],
            ["plot", first, "--formats", "svg"],
        ]
        for args in commands:
            done = subprocess.run(
                [sys.executable, "-c", BLOCK, *args], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
