"""The scorer run by Inspect itself, with its mock model."""

import math

import pytest

pytest.importorskip(
    "inspect_ai",
    reason="inspect-ai is not installed (it is not in the lock): pip install inspect-ai",
)

from inspect_ai import Task, eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import SampleScore, Score
from inspect_ai.solver import generate

from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.errors import DataError
from caopd_verl.integrations.inspect_scorer import calibration, pairs, samples
from tests.integrations.rows import PAIRED, expected, responses, write_questions


def run(tmp_path, answer, *, epochs=1):
    """Figures by name and the log of a run, in which `answer(number of the question)` is said."""
    questions = samples("sciknoweval", write_questions(tmp_path / "q.jsonl"))

    def reply(messages, tools, tool_choice, config):
        assert CONFIDENCE_INSTRUCTION in messages[0].content
        question = messages[-1].content.split("?")[0]
        number = int(question.removeprefix("Question "))
        output = ModelOutput.from_content("mockllm/model", answer(number))
        # Without it the mock counts tokens, with a vocabulary from the network.
        output.usage = ModelUsage()
        return output

    task = Task(dataset=questions, solver=generate(), scorer=calibration())
    model = get_model("mockllm/model", custom_outputs=reply)
    logs = str(tmp_path / "logs")
    (log,) = eval(task, model=model, log_dir=logs, display="none", epochs=epochs)
    assert log.status == "success", log.error
    figures = {}
    for scores in log.results.scores:
        for name, metric in scores.metrics.items():
            short_name = name.split("/")[-1]
            figures[short_name] = metric.value
    return figures, log


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_figures_are_those_of_the_metrics(tmp_path, epochs):
    figures, log = run(tmp_path, lambda i: responses()[i], epochs=epochs)
    for name in ("format_adherence", *PAIRED):
        assert figures[name] == pytest.approx(expected()[name], abs=1e-12)
    assert figures["accuracy"] == pytest.approx(expected()["acc"])
    samples = {sample.id: sample for sample in log.samples}
    score = samples["sciknoweval-3"].scores["calibration"]
    assert score.metadata == {"confidence": 0.95, "confidence_status": "ok"}
    assert score.answer == "A"


def test_undefined_is_nan(tmp_path):
    figures, _ = run(tmp_path, lambda i: "<answer>A</answer>\nConfidence: 0.5")
    assert math.isnan(figures["spr"])
    assert figures["ocg"] == -0.5


def test_other_scores_are_refused():
    no_verdict = Score(value=0.5, metadata={"confidence": 0.5})
    with pytest.raises(DataError, match="calibration"):
        pairs([SampleScore(score=no_verdict, sample_id="x")])
    no_confidence = Score(value="C")
    with pytest.raises(DataError, match="sample y"):
        pairs([SampleScore(score=no_confidence, sample_id="y")])
