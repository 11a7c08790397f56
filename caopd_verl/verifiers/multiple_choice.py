"""Multiple choice: the letter in the last closed pair `<answer>...</answer>`.

Of all pairs `<answer>text</answer>` whose text holds no `<` (tags in any case), the last counts.
Its text must be a single letter, white space around it aside, which is compared with the gold
letter without regard to case. Anything else in the pair (`A.`, `(A)`, `A: 12 g/mol`) is
`malformed`, since the prompt asks for the letter alone; so is a tag that is never closed. No tag at
all is `no_answer`.

This is the rule that the CaOPD repository trains with, used here for evaluation too. SDPO's rule
differs: it is case-sensitive and reads an unclosed last tag.
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
    """Verifier for lettered options. Gold answers: one upper-case letter.

    Whether the letter is one of the row's options is checked by the loaders, which know them.
    """

    def check_gold(self, answer: str, where: str) -> None:
        """Raise `DataError` unless `answer` is one upper-case letter."""
        if not isinstance(answer, str) or not _GOLD.fullmatch(answer):
            raise DataError(
                f"gold answer {answer!r} is not a label",
                where=where,
                expected="one upper-case letter, such as 'B'",
                fix="put the correct option's letter into the answer field",
            )

    def demonstration(self, gold: str) -> str:
        """`<answer>B</answer>`. Raises `DataError` as `check_gold` does."""
        self.check_gold(gold, "gold answer to be shown")
        return f"<answer>{gold}</answer>"

    def __call__(self, response: str, gold: str) -> Verdict:
        """Judge `response`.

        `Verdict.answer` is the letter in upper case, or the raw text of a malformed answer.
        """
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
