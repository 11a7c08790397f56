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
        what = ["--responses", str(path), "--verifier", "multiple_choice"]
        fast = ["--n-resamples", "20", "--n-simulations", "20", "--no-progress"]
        assert main(["eval", *what, "--output", str(folder / name), *fast]) == OK
    return folder


def card(folder, output, *more):
    """Write the card of one run; returns the exit status."""
    return main(["card", str(folder), "--output", str(output), *more])


def by_name(path):
    """The card's results, as huggingface_hub reads them."""
    return {entry.metric_name: entry for entry in ModelCard.load(path).data.eval_results}


def test_a_new_card_holds_the_figures(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    assert card(folder / "mixed", path, "--dataset", "my/data", "--model-name", "org/model") == OK
    metrics = json.loads((folder / "mixed" / "metrics.json").read_text())
    figures = metrics["readouts"]["stated"]["metrics"]
    found = by_name(path)
    accuracy = found["accuracy"]
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", figures["acc"]["value"])
    ece = found["ECE, stated confidence"]
    assert (ece.metric_type, ece.metric_value) == ("ece", figures["ece"]["value"])
    assert (ece.dataset_type, ece.dataset_name) == ("my/data", "my/data")
    assert ece.task_type == "text-generation"
    args = ece.metric_args
    assert (args["n"], args["n_bins"]) == (8, 10)
    assert args["low"] == figures["ece"]["low"]
    assert args["if_calibrated_p95"] > 0
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
    # Once more: entries of the same data set and metric are replaced, not doubled.
    assert card(folder / "mixed", path, "--dataset", "d") == OK
    loaded = ModelCard.load(path)
    assert loaded.text.strip() == "# Mine\n\nText — kept."
    assert (loaded.data.license, loaded.data.model_name) == ("mit", "mine")
    assert len(loaded.data.eval_results) == 1 + 8
    assert by_name(path)["BLEU"].metric_value == 1.5


def test_undefined_figures_have_no_entry_and_are_named(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    assert card(folder / "right", path, "--dataset", "d") == OK
    assert "SPR, stated confidence" not in by_name(path)
    assert "left out: stated, SPR: all 5 rows are correct" in capsys.readouterr().out


def test_finished_responses_need_a_data_sets_name(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    assert card(folder / "mixed", path) == BAD_INPUT
    assert "--dataset" in capsys.readouterr().err
    assert not path.exists()


def test_one_data_sets_name_is_for_one_result(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    both = [str(folder / "mixed"), str(folder / "right")]
    assert main(["card", *both, "--output", str(path), "--dataset", "d"]) == BAD_INPUT
    assert "one name for 2 results" in capsys.readouterr().err
    assert not path.exists()


def test_a_file_that_is_no_card_is_left_alone(folder, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: [\n---\ntext")
    assert card(folder / "mixed", path, "--dataset", "d") == BAD_INPUT
    assert "no model card can be read" in capsys.readouterr().err
    assert path.read_text() == "---\nlicense: [\n---\ntext"


def test_a_folder_without_rows_is_refused(tmp_path, capsys):
    path = tmp_path / "README.md"
    assert card(tmp_path / "none", path, "--dataset", "d") == BAD_INPUT
    assert "there are no evaluated rows" in capsys.readouterr().err
