"""A validation split out of the training rows (trap T32), and a check that splits share no prompt.

The paper's test sets have 68 and 210 rows; choosing a checkpoint by them biases the result by more than the differences
that it reports. So a validation split comes out of train: deterministic, independent of the rows' order, with equal
prompts always on the same side.
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
    return json.dumps(example.messages, sort_keys=True, ensure_ascii=False)


def validation_split(
    examples: Sequence[Example], *, fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split into `(train, validation)`, both in the order of `examples`.

    Each distinct prompt gets a rank from a hash of seed and text; the first `ceil(fraction * prompts)` are validation.

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
    n_validation = math.ceil(fraction * len(ranked) - 1e-9)
    if not 0 < n_validation < len(ranked):
        raise ConfigError(
            f"{n_validation} of {len(ranked)} prompts would be the validation split, which leaves a side empty",
            where="validation_fraction",
            fix="use more rows or another fraction",
        )
    chosen = set(ranked[:n_validation])
    train = [example for example, key in zip(examples, keys, strict=True) if key not in chosen]
    validation = [example for example, key in zip(examples, keys, strict=True) if key in chosen]
    return train, validation


def subsample(examples: Sequence[Example], *, n: int, seed: int) -> list[Example]:
    """`n` of the examples in their order, chosen by a hash of seed and id; smaller `n` give subsets of larger ones.

    Raises:
        ConfigError: `n` below 1 or above the number of examples.
    """
    if not 1 <= n <= len(examples):
        raise ConfigError(
            f"{n} examples were asked for",
            where="n",
            expected=f"between 1 and the {len(examples)} that there are",
        )
    chosen = set(_ranked({example.id for example in examples}, seed)[:n])
    return [example for example in examples if example.id in chosen]


def check_disjoint(
    first: Sequence[Example], second: Sequence[Example], *, names: tuple[str, str]
) -> None:
    """Raise `DataError`, naming both places, at the first prompt that `first` and `second` share."""
    seen = {prompt_key(example): example for example in first}
    shared = [example for example in second if prompt_key(example) in seen]
    if shared:
        twin = seen[prompt_key(shared[0])]
        raise DataError(
            f"the prompt is in the {names[0]} split too, at {twin.where} ({len(shared)} shared prompts in all)",
            where=f"{shared[0].where} ({names[1]})",
            expected="splits without common prompts",
            fix="remove the shared rows from one of the splits",
        )


def _ranked(texts: set[str], seed: int) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())
