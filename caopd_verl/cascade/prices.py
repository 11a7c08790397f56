"""What a query costs a model: a figure per query, or prices per million tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.metrics.inputs import FloatArray

_TOKENS_PER_PRICE = 1e6


@dataclass(frozen=True)
class Price:
    """What a query costs one of the models: per query, or by its tokens; one unit for both models.

    Attributes:
        flag: which model; the names of the options contain it.
        per_query: in any unit.
        price_in, price_out: for a million prompt tokens, and for a million response tokens.

    Raises:
        ConfigError: neither kind, both kinds, half of the prices, or a figure that is negative or
            not finite.
    """

    flag: Literal["small", "large"]
    per_query: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        prices = (self.price_in, self.price_out)
        n_prices = sum(price is not None for price in prices)
        n_wanted = 2 if self.per_query is None else 0
        if n_prices != n_wanted:
            fixed = f"--cost-{self.flag}"
            prices_of_tokens = f"--{self.flag}-price-in and --{self.flag}-price-out"
            raise ConfigError(
                f"it is not clear what a query costs the {self.flag} model",
                where=fixed,
                expected=f"either {fixed} (per query, any unit) "
                f"or both {prices_of_tokens} (per million tokens)",
                fix="give the same kind for both models, such as --cost-small 1 --cost-large 10",
            )
        for value in (self.per_query, *prices):
            if value is not None and not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(
                    f"a price of {value} can't be",
                    where=f"the {self.flag} model",
                    expected="a number >= 0",
                )

    @property
    def by_tokens(self) -> bool:
        """Whether a query's cost follows from its tokens."""
        return self.per_query is None

    def costs(self, prompt_tokens: FloatArray, response_tokens: FloatArray) -> FloatArray:
        """Cost of each answer, shape [n]; NaN where a token count is needed and NaN.

        Args:
            prompt_tokens, response_tokens: counts, shape [n].
        """
        if self.per_query is not None:
            return np.full(len(prompt_tokens), float(self.per_query))
        assert self.price_in is not None and self.price_out is not None
        prompts = prompt_tokens * self.price_in
        responses = response_tokens * self.price_out
        return (prompts + responses) / _TOKENS_PER_PRICE
