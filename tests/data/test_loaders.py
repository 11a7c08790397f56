import json
from pathlib import Path

import pytest

from caopd_verl.data import CONFIDENCE_INSTRUCTION, TASKS, load_task
from caopd_verl.data.prompts import has_instruction
from caopd_verl.data.toolalpaca import load_toolalpaca
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.verifiers import get_verifier
from caopd_verl.verifiers.tool_call import render_calls

ROWS = Path(__file__).parent / "rows"
FILES = {"sciknoweval": "sciknoweval.json", "toolalpaca": "tooluse.json", "jsonl": "own.jsonl"}


def load(name, path, **options):
    return load_task(name, path=path, seed=0, n=None, split="test", **options)


def edited(tmp_path, name, line, **changes):
    """A copy of the rows of `name` with keys of one line changed, or removed where the value is `...`."""
    rows = [json.loads(text) for text in (ROWS / FILES[name]).read_text().splitlines()]
    for key, value in changes.items():
        rows[line - 1].pop(key, None)
        if value is not ...:
            rows[line - 1][key] = value
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_t28_every_source_carries_the_instruction_once_and_in_one_place():
    for name, file in FILES.items():
        for example in load(name, ROWS / file):
            assert sum(m["content"].count(CONFIDENCE_INSTRUCTION) for m in example.messages) == 1, (
                example.where
            )
    for example in load_task("arithmetic", path=None, seed=0, n=3, split="test"):
        assert has_instruction(example.messages)


def test_t28_science_has_it_in_the_response_format_behind_the_answer_tag():
    system, user = load("sciknoweval", ROWS / FILES["sciknoweval"])[0].messages
    assert (
        f"<answer>\n...\n</answer>\n{CONFIDENCE_INSTRUCTION}\n\nFor the answer,"
        in system["content"]
    )
    assert (
        system["role"] == "system"
        and user["role"] == "user"
        and "Confidence" not in user["content"]
    )


def test_t28_tool_use_has_it_before_begin():
    (message,) = load("toolalpaca", ROWS / FILES["toolalpaca"])[0].messages
    assert (
        f"realistic and from the user.\n{CONFIDENCE_INSTRUCTION}\n\nBegin!\nQuestion: Which"
        in message["content"]
    )
    assert message["role"] == "user"


def test_t28_own_data_has_it_at_the_placeholder_or_at_the_end():
    first, second = load("jsonl", ROWS / FILES["jsonl"])
    assert first.messages[-1]["content"].endswith(f"\n{CONFIDENCE_INSTRUCTION}")
    assert second.messages[0]["content"] == f"Be brief. {CONFIDENCE_INSTRUCTION}"
    assert second.messages[1]["content"] == "A or B?"
    assert (first.id, second.id, second.source, second.meta) == (
        "q1",
        "line-2",
        "mine",
        {"level": 1},
    )


def test_examples_say_where_they_come_from():
    path = ROWS / FILES["sciknoweval"]
    examples = load("sciknoweval", path)
    assert [e.where for e in examples] == [f"{path}:{i}" for i in (1, 2, 3, 4)]
    assert [e.answer for e in examples] == ["D", "B", "A", "C"]
    assert [len(e.meta["options"]) for e in examples] == [4, 4, 2, 4]


SCIENCE, TOOL, OWN = "sciknoweval", "toolalpaca", "jsonl"


@pytest.mark.parametrize(
    ("name", "line", "changes", "what"),
    [
        (SCIENCE, 2, {"answer": ...}, "no 'answer'"),
        (SCIENCE, 2, {"answer": ""}, "'answer' is empty"),
        (SCIENCE, 2, {"answer": None}, "'answer' is of type NoneType"),
        (SCIENCE, 2, {"answer": "E"}, "'E' is none of the options"),
        (SCIENCE, 3, {"answer": "C"}, "'C' is none of the options"),
        (SCIENCE, 2, {"answer": "b"}, "'b' is not a label"),
        (SCIENCE, 2, {"prompt": ...}, "no 'prompt'"),
        (SCIENCE, 2, {"prompt": "Which?"}, "no lettered options"),
        (SCIENCE, 2, {"prompt": "Which?\nA: x\nC: y"}, "no lettered options"),
        (SCIENCE, 2, {"system": None}, "'system' is of type NoneType"),
        (SCIENCE, 2, {"system": "Answer!"}, "no response format"),
        (SCIENCE, 2, {"idx": 0}, "'sciknoweval-0' was used before, at "),
        (SCIENCE, 2, {"idx": ...}, "no usable 'idx'"),
        (TOOL, 3, {"answer": ...}, "no 'answer'"),
        (TOOL, 3, {"answer": "[]"}, "holds no calls"),
        (TOOL, 3, {"answer": "[{"}, "not JSON"),
        (TOOL, 3, {"prompt": "Question: x"}, "0 lines that start with 'Begin!'"),
        (TOOL, 3, {"prompt": "Begin!\nBegin!\nx"}, "2 lines that start with 'Begin!'"),
        (TOOL, 3, {"prompt": ...}, "no 'prompt'"),
        (TOOL, 3, {"system": "Be good."}, "'system' is not null"),
        (TOOL, 3, {"idx": 100}, "was used before"),
        (OWN, 1, {"answer": ...}, "no 'answer'"),
        (OWN, 1, {"answer": "four"}, "not an integer"),
        (OWN, 1, {"anwser": "4"}, "unknown key 'anwser'"),
        (OWN, 1, {"verifier": ...}, "names no verifier"),
        (OWN, 1, {"verifier": "mcq"}, "unknown verifier 'mcq'"),
        (OWN, 1, {"verifier": "mcq", "id": "q2"}, "unknown verifier 'mcq'"),
        (OWN, 1, {"prompt": ...}, "needs a prompt"),
        (OWN, 1, {"messages": []}, "needs a prompt"),
        (OWN, 2, {"messages": []}, "not a non-empty list"),
        (OWN, 2, {"messages": [{"role": "user"}]}, "message 0 is not usable"),
        (OWN, 2, {"messages": [{"role": "assistant", "content": "x"}]}, "not the user's"),
        (OWN, 2, {"messages": [{"role": "user", "content": " "}]}, "'content' is empty"),
        (OWN, 2, {"system": "x"}, "beside 'messages'"),
        (OWN, 2, {"id": "q1"}, "was used before"),
        (OWN, 2, {"id": None}, "no usable 'id'"),
        (OWN, 2, {"meta": 1}, "'meta' is of type int"),
    ],
)
def test_each_bad_row_is_one_error_with_file_and_line(tmp_path, name, line, changes, what):
    path = edited(tmp_path, name, line, **changes)
    with pytest.raises(DataError) as error:
        load(name, path)
    assert str(error.value).startswith(f"{path}:{line}: ") and what in str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (b'\n{"idx": 1', ":2", "not JSON"),
        (b"\n\n[1]x", ":3", "not JSON"),
        (b'\n"x"', ":2", "JSON str"),
        (b"\n\xff\xfe", ":2", "not JSON"),
        (b"", "", "no rows"),
        (b"\n  \n", "", "no rows"),
    ],
)
def test_broken_files_name_the_line(tmp_path, name, text, where, what):
    path = tmp_path / "rows.json"
    path.write_bytes(text)
    if name == "toolalpaca" and b"[" in text:
        where = ":3"  # a JSON list is taken for an evaluation file, whose errors name the line too
    with pytest.raises(DataError) as error:
        load(name, path)
    assert str(error.value).startswith(f"{path}{where}: ") and what in str(error.value)
    with pytest.raises(DataError, match="can't be read"):
        load(name, tmp_path / "nothing.json")


def test_odd_but_valid_files_load(tmp_path):
    path = tmp_path / "rows.json"
    text = (
        (ROWS / FILES[SCIENCE])
        .read_text()
        .replace("\n", "\r\n\r\n")
        .replace("methane", "meth\u2028ane")
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [e.where.rpartition(":")[2] for e in load(SCIENCE, path)] == ["1", "3", "5", "7"]


def test_the_evaluation_file_gives_the_prompts_of_the_rows():
    rows = load(TOOL, ROWS / FILES[TOOL])
    path = ROWS / "toolalpaca_eval.json"
    with pytest.warns(UserWarning, match="left out 1 of 4 questions with placeholders"):
        built = load(TOOL, path, placeholders="exclude")
    assert [e.messages for e in built] == [e.messages for e in rows]
    assert [json.loads(e.answer) for e in built] == [json.loads(e.answer) for e in rows]
    with pytest.raises(
        DataError, match=r"API 0 \(Lamps\):question 3: the input of call 0 .* is not a JSON object"
    ):
        load(TOOL, path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"Name": ""}, "API 0: 'Name' is empty"),
        ({"Golden_Answers": []}, "not two lists of one length"),
        ({"Function_Description": {"a": 1}}, "does not map names to texts"),
        ({"Instructions": ["", "b", "c", "d"]}, "question 0: the question is empty"),
        ({"Description": None}, "'Description' is of type"),
    ],
)
def test_bad_apis_of_the_evaluation_file(tmp_path, changes, what):
    api = {**json.loads((ROWS / "toolalpaca_eval.json").read_text())[0], **changes}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps([api]))
    with pytest.raises(DataError) as error:
        load(TOOL, path)
    assert str(path) in str(error.value) and what in str(error.value)


def test_the_verifier_of_a_task_is_a_switch():
    assert {e.verifier for e in load(TOOL, ROWS / FILES[TOOL], verifier="tool_call_first")} == {
        "tool_call_first"
    }
    with pytest.raises(ConfigError, match="unknown verifier 'arithmetic'"):
        load(TOOL, ROWS / FILES[TOOL], verifier="arithmetic")
    with pytest.raises(ConfigError, match="unknown choice 'drop'"):
        load(TOOL, ROWS / FILES[TOOL], placeholders="drop")


def test_unknown_tasks_splits_and_options_are_config_errors():
    with pytest.raises(ConfigError, match="one of " + ", ".join(TASKS)):
        load("mmlu", None)
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        load_task("sciknoweval", path="x", seed=0, n=None, split="dev")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a data file"):
        load(SCIENCE, None)
    with pytest.raises(ConfigError, match="no option 'colour'"):
        load(SCIENCE, ROWS / FILES[SCIENCE], colour=1)
    with pytest.raises(ConfigError, match="takes no 'path'"):
        load_task("arithmetic", path="x", seed=0, n=1, split="test")
    with pytest.raises(ConfigError, match="needs a number"):
        load_task("arithmetic", path=None, seed=0, n=None, split="test")


@pytest.mark.parametrize("verifier", ["tool_call", "tool_call_first"])
def test_hand_made_gold_answers_verify_themselves(verifier):
    for example in load(TOOL, ROWS / FILES[TOOL], verifier=verifier):
        assert get_verifier(verifier)(
            render_calls(example.answer) + "\nConfidence: 1.00", example.answer
        ).correct


def test_t22_every_gold_of_the_science_rows_verifies_itself(shared_data):
    examples = load(SCIENCE, shared_data / "sciknoweval_chemistry" / "train.json")
    assert len(examples) == 1890 and {len(e.meta["options"]) for e in examples} == {4}
    verify = get_verifier("multiple_choice")
    for e in examples:
        response = (
            f"<reasoning>\n...\n</reasoning>\n<answer>\n{e.answer}\n</answer>\nConfidence: 0.62"
        )
        assert verify(response, e.answer).correct
        assert not verify(response, "A" if e.answer != "A" else "B").correct


@pytest.mark.parametrize("verifier", ["tool_call", "tool_call_first"])
def test_t22_every_gold_of_the_tool_use_rows_verifies_itself(shared_data, verifier):
    rows = load_toolalpaca(shared_data / "tooluse" / "sample.json", verifier=verifier)
    with pytest.warns(UserWarning, match="left out 31 of 100"):
        apis = load_toolalpaca(
            shared_data / "tooluse" / "toolalpaca_eval_simulated.json",
            placeholders="exclude",
            verifier=verifier,
        )
    assert (len(rows), len(apis)) == (34, 69)
    for e in rows + apis:
        assert get_verifier(verifier)(
            render_calls(e.answer) + "\nConfidence: 0.62", e.answer
        ).correct, e.where
    built = {e.messages[0]["content"] for e in apis}
    assert all(e.messages[0]["content"] in built for e in rows)
