"""What the loaders make of good files; what they say of bad ones is in `test_bad_rows`."""

import json

import pytest

from caopd_verl.data import CONFIDENCE_INSTRUCTION, TASKS, load_task
from caopd_verl.data.prompts import has_instruction
from caopd_verl.data.toolalpaca import load_toolalpaca
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.verifiers import get_verifier
from tests.data.row_files import EVALUATION_FILE, FILES, OWN, SCIENCE, TOOL, edited, load

TOOL_VERIFIERS = ("tool_call", "tool_call_first")


@pytest.mark.parametrize("name", FILES)
def test_every_prompt_carries_the_confidence_instruction_once(name):
    for example in load(name, FILES[name]):
        texts = [message["content"] for message in example.messages]
        assert "".join(texts).count(CONFIDENCE_INSTRUCTION) == 1, example.where


def test_generated_prompts_carry_the_confidence_instruction_too():
    for example in load_task("arithmetic", path=None, seed=0, n=3, split="test"):
        assert has_instruction(example.messages)


def test_science_has_the_instruction_in_the_response_format_behind_the_answer_tag():
    system, user = load(SCIENCE, FILES[SCIENCE])[0].messages
    response_format = f"<answer>\n...\n</answer>\n{CONFIDENCE_INSTRUCTION}\n\nFor the answer,"
    assert response_format in system["content"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "Confidence" not in user["content"]


def test_tool_use_has_the_instruction_before_begin():
    (message,) = load(TOOL, FILES[TOOL])[0].messages
    end = f"realistic and from the user.\n{CONFIDENCE_INSTRUCTION}\n\nBegin!\nQuestion: Which"
    assert end in message["content"]
    assert message["role"] == "user"


def test_own_data_has_the_instruction_at_the_placeholder_or_at_the_end():
    first, second = load(OWN, FILES[OWN])
    assert first.messages[-1]["content"].endswith(f"\n{CONFIDENCE_INSTRUCTION}")
    assert second.messages[0]["content"] == f"Be brief. {CONFIDENCE_INSTRUCTION}"
    assert second.messages[1]["content"] == "A or B?"


def test_own_data_keeps_id_source_and_meta():
    first, second = load(OWN, FILES[OWN])
    assert (first.id, first.source, first.meta) == ("q1", "jsonl", {})
    assert (second.id, second.source, second.meta) == ("line-2", "mine", {"level": 1})


def test_examples_say_where_they_come_from():
    examples = load(SCIENCE, FILES[SCIENCE])
    assert [e.where for e in examples] == [f"{FILES[SCIENCE]}:{i}" for i in (1, 2, 3, 4)]
    assert [e.answer for e in examples] == ["D", "B", "A", "C"]
    assert [len(e.meta["options"]) for e in examples] == [4, 4, 2, 4]


@pytest.mark.parametrize("name", FILES)
def test_a_demonstration_is_taken_where_the_row_gives_one(tmp_path, name):
    path = edited(tmp_path, name, 2, demonstration="First this.\n<answer>B</answer>")
    given = [example.demonstration for example in load(name, path)]
    assert given[1] == "First this.\n<answer>B</answer>"
    assert set(given[:1] + given[2:]) == {None}


@pytest.mark.parametrize("name", FILES)
def test_a_null_demonstration_is_none_given(tmp_path, name):
    path = edited(tmp_path, name, 2, demonstration=None)
    assert load(name, path)[1].demonstration is None


def test_odd_but_valid_files_load(tmp_path):
    path = tmp_path / "rows.json"
    text = FILES[SCIENCE].read_text()
    # Windows line ends, blank lines, and a line separator of Unicode inside a string.
    text = text.replace("\n", "\r\n\r\n").replace("methane", "meth\u2028ane")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [e.where.rpartition(":")[2] for e in load(SCIENCE, path)] == ["1", "3", "5", "7"]


def test_the_evaluation_file_gives_the_prompts_of_the_rows():
    rows = load(TOOL, FILES[TOOL])
    with pytest.warns(UserWarning, match="left out 1 of 4 questions with placeholders"):
        built = load(TOOL, EVALUATION_FILE, placeholders="exclude")
    assert [e.messages for e in built] == [e.messages for e in rows]
    assert [json.loads(e.answer) for e in built] == [json.loads(e.answer) for e in rows]
    assert [e.meta["question"] for e in built] == [0, 1, 2]


def test_a_placeholder_in_a_gold_answer_is_an_error_unless_excluded():
    place = r"API 0 \(Lamps\):question 3"
    with pytest.raises(DataError, match=f"{place}: the input of call 0 .* is not a JSON object"):
        load(TOOL, EVALUATION_FILE)


def test_the_verifier_of_a_task_is_a_switch():
    examples = load(TOOL, FILES[TOOL], verifier="tool_call_first")
    assert {example.verifier for example in examples} == {"tool_call_first"}
    with pytest.raises(ConfigError, match="unknown verifier 'arithmetic'"):
        load(TOOL, FILES[TOOL], verifier="arithmetic")
    with pytest.raises(ConfigError, match="unknown choice 'drop'"):
        load(TOOL, FILES[TOOL], placeholders="drop")


def test_unknown_tasks_splits_and_options_are_config_errors():
    with pytest.raises(ConfigError, match="one of " + ", ".join(TASKS)):
        load("mmlu", None)
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        load_task("sciknoweval", path="x", seed=0, n=None, split="dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a data file"):
        load(SCIENCE, None)
    with pytest.raises(ConfigError, match="no option 'colour'"):
        load(SCIENCE, FILES[SCIENCE], colour=1)
    with pytest.raises(ConfigError, match="takes no 'path'"):
        load_task("arithmetic", path="x", seed=0, n=1, split="test")
    with pytest.raises(ConfigError, match="needs a number"):
        load_task("arithmetic", path=None, seed=0, n=None, split="test")


def shown_correctly(examples, *, then=""):
    """The examples whose demonstration, followed by `then`, their verifier judges correct."""
    kept = []
    for example in examples:
        verify = get_verifier(example.verifier)
        response = verify.demonstration(example.answer) + then
        if verify(response, example.answer).correct:
            kept.append(example)
    return kept


@pytest.mark.parametrize("line", ["", "\nConfidence: 0.62"])
def test_every_gold_answer_of_the_test_rows_demonstrates_itself(line):
    examples = load(SCIENCE, FILES[SCIENCE]) + load(OWN, FILES[OWN])
    examples += load_task("arithmetic", path=None, seed=0, n=20, split="test")
    for verifier in TOOL_VERIFIERS:
        examples += load(TOOL, FILES[TOOL], verifier=verifier)
    assert {e.verifier for e in examples} == {"arithmetic", "multiple_choice", *TOOL_VERIFIERS}
    assert shown_correctly(examples, then=line) == examples


def test_every_gold_answer_of_the_science_rows_demonstrates_itself(shared_data):
    examples = load(SCIENCE, shared_data / "sciknoweval_chemistry" / "train.json")
    assert len(examples) == 1890
    assert {len(e.meta["options"]) for e in examples} == {4}
    assert shown_correctly(examples, then="\nConfidence: 0.62") == examples
    verify = get_verifier("multiple_choice")
    for example in examples:
        response = f"<reasoning>\n...\n</reasoning>\n<answer>\n{example.answer}\n</answer>"
        assert verify(response, example.answer).correct
        assert not verify(response, "A" if example.answer != "A" else "B").correct


@pytest.mark.parametrize("verifier", TOOL_VERIFIERS)
def test_every_gold_answer_of_the_tool_use_rows_demonstrates_itself(shared_data, verifier):
    rows = load_toolalpaca(shared_data / "tooluse" / "sample.json", verifier=verifier)
    evaluation = shared_data / "tooluse" / "toolalpaca_eval_simulated.json"
    with pytest.warns(UserWarning, match="left out 31 of 100"):
        questions = load_toolalpaca(evaluation, placeholders="exclude", verifier=verifier)
    assert (len(rows), len(questions)) == (34, 69)
    assert shown_correctly(rows + questions, then="\nConfidence: 0.62") == rows + questions
    built = {question.messages[0]["content"] for question in questions}
    assert {row.messages[0]["content"] for row in rows} <= built
