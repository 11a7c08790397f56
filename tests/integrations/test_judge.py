"""What the harnesses share, and lm-evaluation-harness's task files as far as they go without it."""

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
from tests.integrations.rows import PAIRED, expected, responses, write_questions


def test_figures_are_those_of_the_metrics():
    pairs = [judge(response, "A", "multiple_choice").pair for response in responses()]
    for name in (*PAIRED, "acc", "format_adherence"):
        assert figure(name, pairs) == pytest.approx(expected()[name], abs=1e-12)


def test_undefined_is_nan_never_0():
    all_correct = [(0.9, True), (0.8, True)]
    assert math.isnan(figure("spr", all_correct))
    no_confidence = [(None, True)]
    assert math.isnan(figure("ece", no_confidence))
    assert figure("format_adherence", no_confidence) == 0.0


def test_a_metric_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError):
        figure("eec", [(0.9, True)])


def test_system_and_question(tmp_path):
    examples = load_task(
        "sciknoweval", path=write_questions(tmp_path / "q.jsonl"), seed=0, n=None, split="test"
    )
    system, question = system_and_question(examples[0])
    assert CONFIDENCE_INSTRUCTION in system
    assert question.startswith("Question 0?")


def test_a_question_of_several_turns_is_refused():
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    with pytest.raises(DataError, match="several turns"):
        system_and_question(Example("i", turns, "A", "multiple_choice", "s", "f:1"))


class Loader(yaml.SafeLoader):
    """Takes `!function` as text."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def task_file(name):
    """One of the harness's task files."""
    return yaml.load((FOLDER / name).read_text(), Loader)


def test_the_tasks_use_the_defaults():
    sampling = DEFAULTS.sampling
    sent = task_file("caopd_sciknoweval.yaml")["generation_kwargs"]
    assert sent["temperature"] == sampling.temperature
    assert sent["top_p"] == sampling.top_p
    assert sent["max_gen_toks"] == sampling.max_tokens


def test_the_tasks_name_functions_that_exist():
    task, own = task_file("caopd_sciknoweval.yaml"), task_file("caopd_jsonl.yaml")
    aggregations = {metric["metric"]: metric["aggregation"] for metric in task["metric_list"]}
    assert aggregations.keys() == {"acc", "format_adherence", *PAIRED}
    named = {task["custom_dataset"], task["process_results"], own["custom_dataset"]}
    named |= set(aggregations.values()) - {"mean"}
    # Read as text: importing it takes a package of the harness.
    source = (FOLDER / "functions.py").read_text()
    missing = [name for name in named if f"def {name.removeprefix('functions.')}(" not in source]
    assert missing == []


def test_the_canned_answers_have_ties_and_pairs_in_both_orders():
    assert 0 < expected()["spr"] < expected()["auroc"] < 1
