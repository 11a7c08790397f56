"""A validation split out of the training rows, and a check that splits share no prompt.

The paper's test sets have 68 and 210 rows: choosing the best checkpoint by them biases the result
by more than the differences that are reported. So a validation split comes out of train. It is
deterministic, independent of the rows' order, and equal prompts are always on the same side.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

from caopd_verl.errors import ConfigError, DataError
from caopd_verl.types import Example


def prompt_key(example: Example) -> str:
    """Identifies a prompt's text: the messages as canonical JSON."""
    # Not the id: the same question may stand in two files under two ids.
    return json.dumps(example.messages, sort_keys=True, ensure_ascii=False)


def validation_split(
    examples: Sequence[Example], *, fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split into `(train, validation)`, both in the order of `examples`.

    Each distinct prompt gets a rank from a hash of seed and text; the first
    `ceil(fraction * prompts)` are validation.

    Raises:
        ConfigError: `fraction` outside (0, 1), or so that one side would be empty.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(
            f"the fraction is {fraction}",
            where="validation_fraction",
            expected="a number in (0, 1)",
        )
    keys = [prompt_key(example) for example in examples]
    ranked = _ranked(set(keys), seed)
    # Less a rounding error: 0.07 * 100 is 7.000000000000001, which must give 7 and not 8.
    n_validation = math.ceil(fraction * len(ranked) - 1e-9)
    if not 0 < n_validation < len(ranked):
        raise ConfigError(
            f"a validation split of {n_validation} of {len(ranked)} prompts leaves a side empty",
            where="validation_fraction",
            fix="use more rows or another fraction",
        )
    chosen = set(ranked[:n_validation])
    train: list[Example] = []
    validation: list[Example] = []
    for example, key in zip(examples, keys, strict=True):
        side = validation if key in chosen else train
        side.append(example)
    return train, validation


def subsample(examples: Sequence[Example], *, n: int, seed: int) -> list[Example]:
    """`n` of the examples in their order, chosen by a hash of seed and id.

    The examples of a smaller `n` are a subset of those of a larger one.

    Raises:
        ConfigError: `n` below 1 or above the number of examples.
    """
    if not 1 <= n <= len(examples):
        raise ConfigError(
            f"{n} examples were asked for",
            where="n",
            expected=f"between 1 and the {len(examples)} that there are",
        )
    ids = {example.id for example in examples}
    chosen = set(_ranked(ids, seed)[:n])
    return [example for example in examples if example.id in chosen]


def check_disjoint(
    first: Sequence[Example], second: Sequence[Example], *, names: tuple[str, str]
) -> None:
    """Raise `DataError`, naming both places, at the first prompt that both splits hold.

    Args:
        first: the examples of one split.
        second: those of the other.
        names: what the message calls the two.
    """
    seen = {prompt_key(example): example for example in first}
    shared = [example for example in second if prompt_key(example) in seen]
    if shared:
        example = shared[0]
        twin = seen[prompt_key(example)]
        elsewhere = f"in the {names[0]} split too, at {twin.where}"
        raise DataError(
            f"the prompt is {elsewhere} ({len(shared)} shared prompts in all)",
            where=f"{example.where} ({names[1]})",
            expected="splits without common prompts",
            fix="remove the shared rows from one of the splits",
        )


def _ranked(texts: set[str], seed: int) -> list[str]:
    # By a hash and not by shuffling: a text's rank is its own, whatever other rows come or go.
    def rank(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{text}".encode()).digest()

    return sorted(texts, key=rank)
