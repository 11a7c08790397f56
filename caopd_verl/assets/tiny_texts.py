"""The texts that the tiny base model of the CPU demo is warmed up on.

Additions of the train split of `data.additions`, in two settings. What each share is for:

Alone: question -> the right sum, and a confidence that depends on the kind of addition only.
* The base's answers are wrong where its training was too short: the kinds of addition come in the
  shares `WARM_UP_LEVELS`, so operands of equal length are learned well and 1+3 or 2+3 digits are
  not. The task (`LEVELS`) asks the latter often.
* Overconfident: the stated confidence is drawn from `OWN_CONFIDENCE` (0.85 to 1.00, 0.95 most often
  for every kind), with a tail over 0.00 to 0.84 in a share of the texts (`TAIL`). For the kinds of
  addition that it has seen rarely the band is a little lower and the tail heavier: a trace of
  self-knowledge, as real models have it in their verbalised distribution (sampling at T 0.6 hides
  the tail; SDPO's mode-seeking removes the rest).

In a teacher's context, with the very templates of `core.context`:
* Shown a solution with a stated confidence, it repeats the answer and copies the confidence. Shown
  confidences: 60 % as it states them itself, the rest anything (half of these on the grid of
  eighths, 0.00 and 1.00 included).
* The same where the response does not agree with the solution (the teacher scores other answers
  than its own), where the solution is wrong, and for an attempt (both wordings,
  `core.context.TEMPLATES`).
* It copies mostly, not always: some responses slip in one digit of the answer (`SLIP`), some state
  another confidence (`OTHER`). A teacher's distribution is no point mass, as in real models.
* Shown a solution without any confidence, it is surer than alone: 0.95 to 1.00.

A seed gives the same texts only as long as every draw from `rng` stays where it is.
"""

from __future__ import annotations

import random

from caopd_verl.core.confidence import render
from caopd_verl.core.context import teacher_messages
from caopd_verl.data.additions import Digits, draw_level, draw_number, question_text, split_of
from caopd_verl.types import Messages, TeacherForm, TeacherPrompt

Mixture = dict[Digits, float]
Weights = dict[float, int]  # confidence -> how often it comes, relative to the others
# Prompt, beginning of the response (no loss), rest of the response (loss).
Text = tuple[Messages, str, str]

WARM_UP_LEVELS: Mixture = {(1, 2): 0.28, (2, 2): 0.30, (1, 3): 0.03, (2, 3): 0.06, (3, 3): 0.33}
RARE = frozenset({(1, 3), (2, 3)})
OWN_CONFIDENCE_COMMON: Weights = {
    0.95: 34, 1.00: 10, 0.98: 12, 0.99: 9, 0.97: 6, 0.96: 5,
    0.90: 10, 0.92: 4, 0.93: 2, 0.94: 3, 0.85: 3, 0.88: 2,
}  # fmt: skip
OWN_CONFIDENCE_RARE: Weights = {
    0.95: 34, 1.00: 3, 0.98: 4, 0.99: 3, 0.97: 2, 0.96: 2,
    0.90: 24, 0.92: 9, 0.93: 3, 0.94: 3, 0.85: 8, 0.88: 5,
}  # fmt: skip
# By whether the kind of addition is rare; TAIL is the share of confidences below 0.85.
OWN_CONFIDENCE = {False: OWN_CONFIDENCE_COMMON, True: OWN_CONFIDENCE_RARE}
TAIL = {False: 0.05, True: 0.27}
SURE: Weights = {1.00: 6, 0.99: 2, 0.98: 1, 0.95: 1}
SHOWN_AS_OWN = 0.6
SLIP, OTHER = 0.04, 0.06
# A number in [0, 1) says what a text in context shows: below the first a solution without any
# confidence, below the second an attempt, else a solution with one.
BARE_BELOW, ATTEMPT_BELOW = 0.12, 0.35
# How often what is shown is wrong, and how often the response gives another answer than it.
WRONG_ATTEMPT, WRONG_SOLUTION, DISAGREES = 0.7, 0.1, 0.25


def draw_addition(rng: random.Random, mixture: Mixture) -> tuple[int, int, bool]:
    """Operands of the train split, and whether the base sees their kind of addition rarely."""
    level = draw_level(rng, mixture)
    while True:
        pair = [draw_number(rng, digits) for digits in level]
        rng.shuffle(pair)
        if split_of(*pair) == "train":
            return pair[0], pair[1], level in RARE


def own_confidence(rng: random.Random, *, rare: bool) -> float:
    """What the base states when alone."""
    if rng.random() >= TAIL[rare]:
        return _pick(rng, OWN_CONFIDENCE[rare])
    if rng.random() < 0.5:
        return rng.randrange(85) / 100
    return rng.randrange(9) / 10


def shown_confidence(rng: random.Random, *, rare: bool) -> float:
    """What a solution in the teacher's context states."""
    if rng.random() < SHOWN_AS_OWN:
        return own_confidence(rng, rare=rare)
    # Eighths are the success rates of the demo, with its 8 rollouts a prompt.
    if rng.random() < 0.5:
        return rng.randrange(9) / 8
    return rng.randrange(101) / 100


def slip(rng: random.Random, number: str) -> str:
    """`number` with another digit at one place, or at two (three in ten of the cases)."""
    digits = list(number)
    for _ in range(1 if rng.random() < 0.7 else 2):
        place = rng.randrange(len(digits))
        # A sum has no leading zero.
        allowed = "0123456789" if place else "123456789"
        others = [digit for digit in allowed if digit != digits[place]]
        digits[place] = rng.choice(others)
    return "".join(digits)


def alone_text(rng: random.Random, mixture: Mixture) -> Text:
    """The student's side."""
    a, b, rare = draw_addition(rng, mixture)
    response = _response(str(a + b), own_confidence(rng, rare=rare))
    return _question(a, b), "", response


def context_text(rng: random.Random, mixture: Mixture) -> Text:
    """The teacher's side."""
    a, b, rare = draw_addition(rng, mixture)
    question, gold, kind = _question(a, b), str(a + b), rng.random()
    if kind < BARE_BELOW:
        form: TeacherForm = "example" if rng.random() < 0.5 else "solution"
        prompt = teacher_messages(TeacherPrompt(question, gold, form))
        return prompt, "", _response(gold, _pick(rng, SURE))
    is_attempt = kind < ATTEMPT_BELOW
    is_wrong = rng.random() < (WRONG_ATTEMPT if is_attempt else WRONG_SOLUTION)
    shown = slip(rng, gold) if is_wrong else gold
    value = shown_confidence(rng, rare=rare)
    form = "attempt" if is_attempt and rng.random() < 0.5 else "solution"
    prompt = teacher_messages(TeacherPrompt(question, _response(shown, value), form))
    stated = rng.randrange(101) / 100 if rng.random() < OTHER else value
    if rng.random() < DISAGREES:
        # Only the confidence is scored: the base must not learn to contradict what it is shown.
        return prompt, f"{slip(rng, shown)}\n", render(stated)
    answer = slip(rng, shown) if rng.random() < SLIP else shown
    return prompt, "", _response(answer, stated)


def _question(a: int, b: int) -> Messages:
    return [{"role": "user", "content": question_text(a, b)}]


def _response(answer: str, confidence: float) -> str:
    return f"{answer}\n{render(confidence)}"


def _pick(rng: random.Random, weights: Weights) -> float:
    values, shares = list(weights), list(weights.values())
    return rng.choices(values, weights=shares)[0]
