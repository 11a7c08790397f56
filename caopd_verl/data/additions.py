"""The generated arithmetic task of the CPU demo: additions of operands with one to three digits.

User message: `12+34=?`, a line break, and the paper's confidence instruction, the same text as in
every other task. Response asked for: the sum alone on the first line, the confidence on the second,
without further working:

    46
    Confidence: 0.88

Gold answer: the sum in decimal digits (`"46"`), verifier `arithmetic`. The mixture of difficulties
(`LEVELS`: digits of the two operands, from `7+38=?` to `764+989=?`) spreads a weak model's accuracy
per prompt over 0..1, which a calibrated confidence has to follow.

The splits are disjoint by construction: the split of a question is a function of a hash of its two
operands without their order. So `12+34` and `34+12` never fall into different splits, whatever `n`
and `seed` are.

    python -c "import caopd_verl.data.additions as a; print(a.generate(n=3, seed=0, split='test'))"
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal, get_args

from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.errors import ConfigError
from caopd_verl.types import Example

Split = Literal["train", "test", "val"]
Digits = tuple[int, int]  # of one operand and of the other

SOURCE = "arithmetic"
VERIFIER = "arithmetic"
# Share of the questions; which operand comes first is drawn at random.
LEVELS: dict[Digits, float] = {(1, 2): 0.12, (2, 2): 0.18, (1, 3): 0.30, (2, 3): 0.25, (3, 3): 0.15}
# Share of the operand pairs that each split holds, in per cent; the train split has the rest.
_PERCENT = {"test": 20, "val": 10}
# A split that is nearly used up gives seen pairs only: this many in a row are taken for its end.
_MAX_TRIES_PER_QUESTION = 200


def split_of(a: int, b: int) -> Split:
    """The split to which `a+b` belongs; symmetric in the operands, independent of any seed."""
    low, high = sorted((a, b))  # a+b and b+a are one question
    # Not hash(), which differs from process to process for texts.
    digest = hashlib.sha256(f"{low}+{high}".encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 100
    if bucket < _PERCENT["test"]:
        return "test"
    return "val" if bucket < _PERCENT["test"] + _PERCENT["val"] else "train"


def question_text(a: int, b: int) -> str:
    """The user message's content for `a+b`, with the confidence instruction on its own line."""
    return f"{a}+{b}=?\n{CONFIDENCE_INSTRUCTION}"


def draw_level(rng: random.Random, mixture: dict[Digits, float]) -> Digits:
    """One key of the mixture, with its share as probability."""
    levels, shares = list(mixture), list(mixture.values())
    return rng.choices(levels, weights=shares)[0]


def draw_number(rng: random.Random, digits: int) -> int:
    """A number of that many digits, uniform, without leading zeros; 0 is a number of one digit."""
    smallest = 10 ** (digits - 1) if digits > 1 else 0
    return rng.randrange(smallest, 10**digits)


def draw_operands(rng: random.Random, split: Split) -> tuple[int, int]:
    """One pair of operands of `split`, drawn from the mixture `LEVELS`."""
    level = draw_level(rng, LEVELS)
    while True:
        pair = [draw_number(rng, digits) for digits in level]
        if rng.random() < 0.5:
            pair.reverse()
        if split_of(*pair) == split:
            return pair[0], pair[1]


def generate(*, n: int, seed: int, split: Split) -> list[Example]:
    """`n` distinct questions of `split`, the same ones for the same arguments on every machine.

    Args:
        n: number of questions, at least 1.
        seed: of the questions' choice and order; questions of different splits differ whatever the
            seeds are.
        split: "train", "test" or "val" (70, 20 and 10 per cent of the operand pairs).

    Raises:
        ConfigError: `n` below 1 or beyond the distinct questions that the split can give, or an
            unknown split.
    """
    if split not in get_args(Split):
        splits = ", ".join(get_args(Split))
        raise ConfigError(
            f"unknown split {split!r}", where="arithmetic split", expected=f"one of {splits}"
        )
    if n < 1:
        raise ConfigError(
            f"{n} questions were asked for", where="arithmetic n", expected="a number of at least 1"
        )
    rng = random.Random(f"{split}:{seed}")
    seen: set[tuple[int, int]] = set()
    examples: list[Example] = []
    for index in range(n):
        a, b = _draw_unseen(rng, split, seen, n)
        seen.add((a, b))
        where = f"generated:split={split}:seed={seed}:index={index}"
        examples.append(_example(a, b, where))
    return examples


def _example(a: int, b: int, where: str) -> Example:
    user = {"role": "user", "content": question_text(a, b)}
    return Example(
        id=f"{SOURCE}-{a}+{b}",
        messages=[user],
        answer=str(a + b),
        verifier=VERIFIER,
        source=SOURCE,
        where=where,
        meta={"operands": [a, b]},
    )


def _draw_unseen(
    rng: random.Random, split: Split, seen: set[tuple[int, int]], n: int
) -> tuple[int, int]:
    for _ in range(_MAX_TRIES_PER_QUESTION):
        pair = draw_operands(rng, split)
        if pair not in seen:
            return pair
    raise ConfigError(
        f"the {split} split has no {n} distinct questions (stopped after {len(seen)})",
        where="arithmetic n",
        fix="ask for fewer questions",
    )
