"""What a verifier is: one object that judges a response against a gold answer.

Reward, success rate (p-hat) and evaluation ask the same object, so that they can't disagree.

Rules for every verifier:

* A trailing line `Confidence: 0.62` never changes the verdict, whatever its form and whether or not
  a number can be read from it.
* A verifier never raises on a response, however odd: an unusable response gives `correct=False`
  with a reason.
* A gold answer that can't be used raises `DataError` from `check_gold`, which every loader calls
  for each row. Calling a verifier with such a gold answer raises as well, because every response
  would be judged wrong: a success rate of 0 that nothing tells apart from a hard question.
* Judging takes time linear in the length of the response.
"""

from __future__ import annotations

from typing import Protocol

from caopd_verl.types import Verdict

CORRECT, WRONG, NO_ANSWER, MALFORMED = "correct", "wrong", "no_answer", "malformed"


class Verifier(Protocol):
    """Judges responses. Stateless: one object serves all threads of a process."""

    def check_gold(self, answer: str, where: str) -> None:
        """Raise `DataError` naming `where` (`file:line`) if `answer` can't be a gold answer."""

    def demonstration(self, gold: str) -> str:
        """The gold answer as the text of a response that this verifier judges correct.

        No reasoning is made up, and there is no confidence line.

        Raises:
            DataError: the gold answer is unusable (see `check_gold`).
        """

    def __call__(self, response: str, gold: str) -> Verdict:
        """Judge `response` (decoded text, without special tokens).

        Raises:
            DataError: the gold answer is unusable (see `check_gold`), never because of a response.
        """
