"""What the harnesses share, and the lm-evaluation-harness tasks' files as far as they can be read without it."""

import math

import pytest
import yaml

from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.data.registry import load_task
from caopd_verl.errors import DataError
from caopd_verl.evaluation.settings import DEFAULTS
from caopd_verl.integrations.judge import figure, judge, system_and_question
from caopd_verl.integrations.lm_harness import FOLDER
from caopd_verl.types import Example
from tests.integrations.rows import LETTERS, PAIRED, expected, responses, write_questions


def test_figures_are_those_of_the_metrics():
    pairs = [judge(response, "A", "multiple_choice").pair for response in responses()]
    for name in (*PAIRED, "acc", "format_adherence"):
        assert figure(name, pairs) == pytest.approx(expected()[name], abs=1e-12)


def test_undefined_is_nan_never_0():
    assert math.isnan(figure("spr", [(0.9, True), (0.8, True)])) and math.isnan(
        figure("ece", [(None, True)])
    )
    assert figure("format_adherence", [(None, True)]) == 0.0
    with pytest.raises(KeyError):
        figure("eec", [(0.9, True)])


def test_system_and_question(tmp_path):
    examples = load_task(
        "sciknoweval", path=write_questions(tmp_path / "q.jsonl"), seed=0, n=None, split="test"
    )
    system, question = system_and_question(examples[0])
    assert CONFIDENCE_INSTRUCTION in system and question.startswith("Question 0?")
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    with pytest.raises(DataError, match="several turns"):
        system_and_question(Example("i", turns, "A", "multiple_choice", "s", "f:1"))


class Loader(yaml.SafeLoader):
    """Takes `!function` as text."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_tasks_use_the_defaults_and_name_functions_that_exist():
    task = yaml.load((FOLDER / "caopd_sciknoweval.yaml").read_text(), Loader)
    sampling, sent = DEFAULTS.sampling, task["generation_kwargs"]
    assert (sent["temperature"], sent["top_p"], sent["max_gen_toks"]) == (
        *(sampling.temperature, sampling.top_p, sampling.max_tokens),
    )
    assert {m["metric"] for m in task["metric_list"]} == {"acc", "format_adherence", *PAIRED}
    source = (FOLDER / "functions.py").read_text()
    own = yaml.load((FOLDER / "caopd_jsonl.yaml").read_text(), Loader)
    named = [task["custom_dataset"], task["process_results"], own["custom_dataset"]]
    named += [m["aggregation"] for m in task["metric_list"] if m["aggregation"] != "mean"]
    assert all(f"def {name.removeprefix('functions.')}(" in source for name in named)


def test_the_canned_answers_are_of_every_kind():
    assert len(responses()) == len(LETTERS) and 0 < expected()["spr"] < expected()["auroc"] < 1
