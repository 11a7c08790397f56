"""SciKnowEval multiple choice, in the row format of SDPO's data sets (one JSON object a line).

Keys used: `idx`, `answer` (the letter), `prompt` (question and lettered options), `system` (the
response format); others are ignored. The data set's rows hold no worked solution; where you have
one, add it as `demonstration`, the text of a response.

Data: https://huggingface.co/datasets/hicai-zju/SciKnowEval and SDPO's `datasets/sciknoweval`. The
evaluation set in the CaOPD repository overlaps with SDPO's training split (268 of its 507 questions
are there): use one repository's splits, never both.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import ascii_uppercase

from caopd_verl.data.json_rows import (
    Row,
    UniqueIds,
    identifier,
    optional_text,
    read_json_lines,
    text_field,
)
from caopd_verl.data.prompts import science_system
from caopd_verl.errors import DataError
from caopd_verl.types import Example
from caopd_verl.verifiers import get_verifier

SOURCE = "sciknoweval"
VERIFIER = "multiple_choice"
_OPTION = re.compile(r"^([A-Z]): ?(.*)$", re.MULTILINE)


def load_sciknoweval(path: str | Path) -> list[Example]:
    """All rows of `path`, in order, each as a system and a user message.

    The confidence instruction is in the system message.

    Raises:
        DataError: naming `file:line`, for a line that is no JSON object; a row without `idx`,
            `answer`, `prompt` or `system`; an `idx` that was used before; a prompt without at least
            two options `A: ...`, `B: ...`; an answer that is none of the row's options; a system
            prompt without response format; a `demonstration` that is no text.
    """
    ids = UniqueIds()
    examples = []
    for where, row in read_json_lines(path):
        example = _example(row, where)
        ids.add(example.id, where)
        examples.append(example)
    return examples


def option_letters(prompt: str) -> list[str]:
    """The letters of the options that end the prompt: its last lines `A: `, `B: `, ... in order.

    Earlier lines of the question may look like options too (`N: 7, B: 5`), so the run is read from
    the last `A: `. Empty where there is no such run.
    """
    letters = [match.group(1) for match in _OPTION.finditer(prompt)]
    if "A" not in letters:
        return []
    after_last_a = letters[::-1].index("A")
    # Whatever follows the last A must be the rest of the options, or the answer could be a letter
    # that belongs to the question's text.
    run = letters[len(letters) - 1 - after_last_a :]
    in_order = list(ascii_uppercase[: len(run)])
    return run if run == in_order else []


def _example(row: Row, where: str) -> Example:
    # With the source, so that ids stay unique where files of several tasks are put together.
    id_ = f"{SOURCE}-{identifier(row, 'idx', where=where)}"
    answer = text_field(row, "answer", where=where).strip()
    prompt = text_field(row, "prompt", where=where)
    system = text_field(row, "system", where=where)
    get_verifier(VERIFIER).check_gold(answer, where)
    letters = option_letters(prompt)
    if len(letters) < 2:
        raise DataError(
            "the prompt has no lettered options",
            where=where,
            expected="lines 'A: ...', 'B: ...' and so on in order",
        )
    if answer not in letters:
        raise DataError(
            f"the answer {answer!r} is none of the options",
            where=where,
            expected="one of " + ", ".join(letters),
            fix="correct or remove the row",
        )
    messages = [
        {"role": "system", "content": science_system(system, where=where)},
        {"role": "user", "content": prompt},
    ]
    return Example(
        id=id_,
        messages=messages,
        answer=answer,
        verifier=VERIFIER,
        source=SOURCE,
        where=where,
        meta={"options": letters},
        demonstration=optional_text(row, "demonstration", where=where),
    )
