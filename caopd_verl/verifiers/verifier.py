"""What a verifier is: one object that judges a response against a gold answer, for reward, p_hat and evaluation alike.

Rules that hold for every verifier of this package (trap T22):

* A trailing `Confidence: 0.62` line never changes the verdict, whatever its form and whether or not it parses.
* A verifier never raises on a response, however odd: an unusable response gives `correct=False` with a reason.
* A gold answer that can't be used raises `DataError` from `check_gold`, which every loader calls per row. Calling a
  verifier with such a gold raises as well: a wrong number instead of an error is the worst outcome (p_hat = 0).
* Judging takes time linear in the response's length.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from caopd_verl.types import Verdict

CORRECT, WRONG, NO_ANSWER, MALFORMED = "correct", "wrong", "no_answer", "malformed"
REASONS = (CORRECT, WRONG, NO_ANSWER, MALFORMED)


@runtime_checkable
class Verifier(Protocol):
    """Judges responses; stateless and picklable (Ray workers get it by name through `get_verifier`)."""

    @property
    def name(self) -> str:
        """Name under which `get_verifier` finds it; stored with every example."""

    def check_gold(self, answer: str, where: str) -> None:
        """Raise `DataError` naming `where` (`file:line`) if `answer` can't serve as a gold answer."""

    def __call__(self, response: str, gold: str) -> Verdict:
        """Judge `response` (decoded text, without special tokens).

        Raises:
            DataError: the gold answer is unusable (see `check_gold`). Never raised because of the response.
        """
