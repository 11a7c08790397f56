"""`caopd card`: written with huggingface_hub's classes, and read back with them."""

import json

import pytest

pytest.importorskip(
    "huggingface_hub", reason="huggingface_hub is not installed: pip install '.[card]'"
)
pytest.importorskip("filelock", reason="the eval extra is not installed")

from huggingface_hub import ModelCard

from caopd_verl.cli import BAD_INPUT, OK, main
from tests.integrations.rows import responses


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs "mixed" and "right" (every answer correct: SPR undefined) of finished responses."""
    folder = tmp_path_factory.mktemp("card")
    cases = {"mixed": responses(), "right": ["<answer>A</answer>\nConfidence: 0.9"] * 5}
    for name, texts in cases.items():
        rows = [{"id": i, "answer": "A", "response": text} for i, text in enumerate(texts)]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        args = [
            "eval",
            "--responses",
            str(path),
            "--verifier",
            "multiple_choice",
            "--output",
            str(folder / name),
        ]
        assert main([*args, "--n-resamples", "20", "--n-simulations", "20", "--no-progress"]) == OK
    return folder


def card(folder, output, *more):
    return main(["card", str(folder), "--output", str(output), *more])


def by_name(path):
    return {entry.metric_name: entry for entry in ModelCard.load(path).data.eval_results}


def test_a_new_card_holds_the_figures(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    assert card(folder / "mixed", path, "--dataset", "my/data", "--model-name", "org/model") == OK
    figures = json.loads((folder / "mixed" / "metrics.json").read_text())["readouts"]["stated"][
        "metrics"
    ]
    found = by_name(path)
    ece = found["ECE, stated confidence"]
    assert ece.metric_value == figures["ece"]["value"] and ece.metric_type == "ece"
    assert ece.metric_args["n"] == 8 and ece.metric_args["low"] == figures["ece"]["low"]
    assert ece.metric_args["n_bins"] == 10 and ece.metric_args["if_calibrated_p95"] > 0
    assert (
        found["accuracy"].metric_type == "accuracy"
        and found["accuracy"].metric_value == figures["acc"]["value"]
    )
    assert (ece.dataset_type, ece.dataset_name, ece.task_type) == (
        "my/data",
        "my/data",
        "text-generation",
    )
    assert ModelCard.load(path).data.model_name == "org/model"
    assert "left out: expected: the file holds no expected confidences" in capsys.readouterr().out


def test_a_card_that_is_there_keeps_text_and_other_results(folder, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(
        "---\nlicense: mit\ntags: [a]\nmodel-index:\n- name: mine\n  results:\n"
        "  - task: {type: text-generation}\n    dataset: {name: other, type: other}\n"
        "    metrics: [{type: bleu, value: 1.5, name: BLEU}]\n---\n# Mine\n\nText — kept.\n"
    )
    assert card(folder / "mixed", path, "--dataset", "d") == OK
    assert card(folder / "mixed", path, "--dataset", "d") == OK  # again: replaced, not doubled
    loaded = ModelCard.load(path)
    assert loaded.text.strip() == "# Mine\n\nText — kept." and loaded.data.license == "mit"
    assert loaded.data.model_name == "mine" and len(loaded.data.eval_results) == 1 + 8
    assert by_name(path)["BLEU"].metric_value == 1.5


def test_undefined_figures_have_no_entry_and_are_named(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    assert card(folder / "right", path, "--dataset", "d") == OK
    assert "SPR, stated confidence" not in by_name(path)
    assert "left out: stated, SPR: all 5 rows are correct" in capsys.readouterr().out


def test_errors(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    assert card(folder / "mixed", path) == BAD_INPUT
    assert "--dataset" in capsys.readouterr().err and not path.exists()
    both = ["card", str(folder / "mixed"), str(folder / "right"), "--output", str(path)]
    assert main([*both, "--dataset", "d"]) == BAD_INPUT
    path.write_text("---\nlicense: [\n---\ntext")
    assert card(folder / "mixed", path, "--dataset", "d") == BAD_INPUT
    assert "no model card can be read" in capsys.readouterr().err
    assert card(tmp_path / "none", path, "--dataset", "d") == BAD_INPUT
