"""The tasks run by lm-evaluation-harness itself, with a model that gives canned answers."""

import json
import math

import pytest

pytest.importorskip(
    "lm_eval", reason="lm-eval is not installed (it is not in the lock): pip install lm-eval"
)

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.errors import ConfigError
from caopd_verl.integrations.lm_harness import FOLDER
from tests.integrations.rows import PAIRED, expected, responses, write_questions


class Canned(LM):
    """Answers the i-th request with the i-th response and keeps what it was asked."""

    def __init__(self, answers):
        super().__init__()
        self.answers, self.asked = answers, []

    def generate_until(self, requests, disable_tqdm=False):
        """The harness's question, in the order of the documents."""
        self.asked += [request.args for request in requests]
        return [self.answers[i] for i in range(len(requests))]

    def loglikelihood(self, requests, disable_tqdm=False):
        """Abstract in the harness's class, so it must be here."""
        raise AssertionError("nothing asks for this")

    loglikelihood_rolling = loglikelihood


def run(task, path, answers):
    """Figures by name, the model that was asked, and everything that the harness returned."""
    model = Canned(answers)
    manager = TaskManager(include_path=str(FOLDER), metadata={"caopd_data": str(path)})
    results = simple_evaluate(
        model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    figures = {}
    for key, value in results["results"][task].items():
        # "ece,none": the metric, and the harness's filter of the responses.
        name, _, filtered_by = key.partition(",")
        if filtered_by == "none":
            figures[name] = value
    return figures, model, results


def test_the_figures_are_those_of_the_metrics(tmp_path):
    figures, model, results = run(
        "caopd_sciknoweval", write_questions(tmp_path / "q.jsonl"), responses()
    )
    for name in ("acc", "format_adherence", *PAIRED):
        assert figures[name] == pytest.approx(expected()[name], abs=1e-12)
    prompt, sent = model.asked[0]
    assert prompt.count(CONFIDENCE_INSTRUCTION) == 1
    before, _, after = prompt.partition("Question 0?")
    assert CONFIDENCE_INSTRUCTION in before
    assert after.rstrip().endswith("B: no")
    assert (sent["temperature"], sent["top_p"], sent["max_gen_toks"]) == (0.6, 0.95, 8192)
    sample = results["samples"]["caopd_sciknoweval"][3]
    assert tuple(sample["ece"]) == (0.95, True)


def test_undefined_is_nan(tmp_path):
    right = ["<answer>A</answer>\nConfidence: 0.5"] * 10
    figures, _, _ = run("caopd_sciknoweval", write_questions(tmp_path / "q.jsonl"), right)
    assert math.isnan(figures["spr"])
    assert figures["ocg"] == -0.5


def test_own_questions(tmp_path):
    path = tmp_path / "own.jsonl"
    sums = {"0+1=?": "1", "1+1=?": "2", "2+1=?": "3"}
    rows = []
    for prompt, answer in sums.items():
        row = {"prompt": prompt, "answer": answer, "verifier": "arithmetic"}
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows))
    answers = [f"{answer}\nConfidence: 0.75" for answer in sums.values()]
    figures, model, _ = run("caopd_jsonl", path, answers)
    assert (figures["acc"], figures["brier"]) == (1.0, 0.0625)
    prompt, _ = model.asked[0]
    assert prompt.startswith("0+1=?")
    assert CONFIDENCE_INSTRUCTION in prompt


def test_without_data_the_error_names_the_option():
    manager = TaskManager(include_path=str(FOLDER))
    with pytest.raises(ConfigError, match="--metadata"):
        simple_evaluate(Canned([]), tasks=["caopd_sciknoweval"], task_manager=manager)
