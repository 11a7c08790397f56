"""Multiple choice: the letter in the last closed `<answer>...</answer>` pair.

The rule, in full: of all pairs `<answer>text</answer>` whose text holds no `<` (tags in any case), the LAST one counts.
Its text, with surrounding white space removed, must be a single letter; it is compared with the gold letter without
regard to case. Anything else in the pair (`A.`, `(A)`, `A: 12 g/mol`) is `malformed`, as the prompt asks for the letter
alone; an opened tag that is never closed is `malformed`; no tag at all is `no_answer`. This is the rule that CaOPD
trains with (SDPO's differs in being case-sensitive and in reading an unclosed last tag), used here for evaluation too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from caopd_verl.errors import DataError
from caopd_verl.types import Verdict
from caopd_verl.verifiers.verifier import CORRECT, MALFORMED, NO_ANSWER, WRONG

# [^<]* ends at the next tag, so each opening tag is scanned once: linear in the text.
_PAIR = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)
_OPEN = re.compile(r"<answer>", re.IGNORECASE)
_LETTER = re.compile(r"[A-Za-z]")
_GOLD = re.compile(r"[A-Z]")


@dataclass(frozen=True)
class MultipleChoiceVerifier:
    """Verifier for lettered options. Gold answers: one upper-case letter (loaders check it against the options)."""

    name: str = "multiple_choice"

    def check_gold(self, answer: str, where: str) -> None:
        """Raise `DataError` unless `answer` is one upper-case letter."""
        if not isinstance(answer, str) or not _GOLD.fullmatch(answer):
            raise DataError(
                f"gold answer {answer!r} is not a label",
                where=where,
                expected="one upper-case letter, such as 'B'",
                fix="put the correct option's letter into the answer field",
            )

    def __call__(self, response: str, gold: str) -> Verdict:
        """Judge `response`; `Verdict.answer` is the upper-cased letter, or the raw text of a malformed answer."""
        self.check_gold(gold, "gold answer given to the multiple_choice verifier")
        text = None
        for match in _PAIR.finditer(response):
            text = match.group(1)
        if text is None:
            return Verdict(False, MALFORMED if _OPEN.search(response) else NO_ANSWER)
        text = text.strip()
        if not text:
            return Verdict(False, NO_ANSWER)
        if not _LETTER.fullmatch(text):
            return Verdict(False, MALFORMED, text)
        letter = text.upper()
        return Verdict(letter == gold, CORRECT if letter == gold else WRONG, letter)
