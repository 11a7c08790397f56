"""A row or a file that can't be used is one error that names the place and what is wrong there."""

import json

import pytest

from caopd_verl.errors import DataError
from tests.data.row_files import EVALUATION_FILE, FILES, OWN, SCIENCE, TOOL, edited, load

BAD_ROWS = [
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
    (SCIENCE, 2, {"demonstration": ["B"]}, "'demonstration' is of type list"),
    (TOOL, 3, {"answer": ...}, "no 'answer'"),
    (TOOL, 3, {"answer": "[]"}, "holds no calls"),
    (TOOL, 3, {"answer": "[{"}, "not JSON"),
    (TOOL, 3, {"prompt": "Question: x"}, "0 lines that start with 'Begin!'"),
    (TOOL, 3, {"prompt": "Begin!\nBegin!\nx"}, "2 lines that start with 'Begin!'"),
    (TOOL, 3, {"prompt": ...}, "no 'prompt'"),
    (TOOL, 3, {"system": "Be good."}, "'system' is not null"),
    (TOOL, 3, {"idx": 100}, "was used before"),
    (TOOL, 3, {"demonstration": " "}, "'demonstration' is empty"),
    (OWN, 1, {"answer": ...}, "no 'answer'"),
    (OWN, 1, {"answer": "four"}, "not an integer"),
    (OWN, 1, {"anwser": "4"}, "unknown key 'anwser'"),
    (OWN, 1, {"verifier": ...}, "names no verifier"),
    (OWN, 1, {"verifier": "mcq"}, "unknown verifier 'mcq'"),
    (OWN, 1, {"verifier": ["mcq"]}, "unknown verifier ['mcq']"),
    (OWN, 1, {"verifier": "no_such.module:Verifier"}, "no module 'no_such'"),
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
    (OWN, 2, {"demonstration": 4}, "'demonstration' is of type int"),
]


@pytest.mark.parametrize(("name", "line", "changes", "what"), BAD_ROWS)
def test_each_bad_row_is_one_error_with_file_and_line(tmp_path, name, line, changes, what):
    path = edited(tmp_path, name, line, **changes)
    with pytest.raises(DataError) as error:
        load(name, path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert what in str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (b'\n{"idx": 1', ":2", "not JSON"),
        # toolalpaca takes a JSON list for an evaluation file, whose errors name the line too
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
    with pytest.raises(DataError) as error:
        load(name, path)
    assert str(error.value).startswith(f"{path}{where}: ")
    assert what in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(DataError, match="can't be read") as error:
        load(name, tmp_path / "nothing.json")
    assert error.value.where == str(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"Name": ""}, "API 0: 'Name' is empty"),
        ({"Golden_Answers": []}, "not two lists of one length"),
        ({"Instructions": "one text"}, "not two lists of one length"),
        ({"Function_Description": {"a": 1}}, "does not map names to texts"),
        ({"Function_Description": ["a"]}, "does not map names to texts"),
        ({"Instructions": ["", "b", "c", "d"]}, "question 0: the question is empty"),
        ({"Description": None}, "'Description' is of type"),
        ({"Instructions": [], "Golden_Answers": []}, "the file holds no questions"),
    ],
)
def test_bad_apis_of_the_evaluation_file(tmp_path, changes, what):
    api = json.loads(EVALUATION_FILE.read_text())[0]
    path = tmp_path / "eval.json"
    path.write_text(json.dumps([{**api, **changes}]))
    with pytest.raises(DataError) as error:
        load(TOOL, path)
    assert str(path) in str(error.value)
    assert what in str(error.value)
