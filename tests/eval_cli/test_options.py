"""Settings classes as options, and what their values may be."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from caopd_verl.cli import BAD_INPUT, main
from caopd_verl.config import Missing
from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.options import add_settings, json_object, read_settings

ASK = ["eval", "--model", "m", "--task", "arithmetic", "--limit", "2", "--output", "unused"]


@dataclass(frozen=True)
class Some:
    count: int = 3
    share: float | None = None
    fast: bool = True
    kind: Literal["one", "two"] = "one"
    missing: Missing = Missing.drop
    extra: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


def parsed(*given: str) -> Some:
    parser = argparse.ArgumentParser()
    names = {"seed": "other_seed"}
    add_settings(parser, Some(), names=names)
    return read_settings(parser.parse_args(given), Some(), names=names)


def test_options_left_out_are_the_class_defaults():
    assert parsed() == Some()


def test_each_kind_of_field_is_read_as_what_it_is():
    given = ["--count", "4", "--share", "0.5", "--no-fast", "--kind", "two", "--missing", "worst"]
    found = parsed(*given, "--extra", '{"a": [1]}', "--other-seed", "7")
    assert found == Some(4, 0.5, False, "two", Missing.worst, {"a": [1]}, 7)
    assert isinstance(found.missing, Missing)


@pytest.mark.parametrize(
    "given", [["--kind", "three"], ["--missing", "maybe"], ["--count", "x"], ["--seed", "1"]]
)
def test_another_choice_or_option_is_refused(given, capsys):
    with pytest.raises(SystemExit):
        parsed(*given)
    assert given[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "what"), [("{enable_thinking: false}", "is no JSON ("), ("[1]", "is no JSON object")]
)
def test_a_json_option_names_itself_and_shows_the_form(text, what):
    with pytest.raises(ConfigError) as caught:
        json_object(text, where="--chat-template-kwargs")
    said = str(caught.value)
    assert said.startswith("--chat-template-kwargs: ") and what in said
    assert """'{"enable_thinking": false}'""" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--chat-template-kwargs", "enable_thinking=false"], "is no JSON ("),
        (["--chat-template-kwargs", '{"tokenize": true}'], "'tokenize' is not the chat template's"),
        (["--extra-body", "[]"], "--extra-body: '[]' is no JSON object"),
        (["--samples", "0"], "--samples: 0 can't work"),
        (["--top-p", "0"], "top-p 0.0"),
    ],
)
def test_bad_values_say_where_and_what(given, said, capsys):
    assert main([*ASK, *given]) == BAD_INPUT
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--p-true"], ["--chat-template-kwargs", '{"x": 1}']])
def test_options_of_a_checkpoint_are_refused_for_an_endpoint(given, capsys):
    assert main([*ASK, "--endpoint", "http://127.0.0.1:9/v1", *given]) == BAD_INPUT
    said = capsys.readouterr().err
    assert given[0] in said and "only a local checkpoint" in said
