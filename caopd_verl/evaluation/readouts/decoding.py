"""From a model's next-token distribution to the one that decoding draws from: temperature, top-p.

A stated confidence is drawn at the temperature and top-p of the response. Its mean over that very
distribution, given the response so far, is the conditional expectation of the stated number: under
any convex loss (Brier) it is never worse on average (Rao-Blackwell, by Jensen's inequality),
whatever the model is. The mean over the model's distribution at temperature 1 has no such
guarantee: it may be better or worse than the stated number.

Normalisation is over the given candidates alone (the tokens that go on spelling one of the
strings), at every token. Where they hold all the probability this is what decoding does; what they
miss is reported as missing mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caopd_verl.errors import ConfigError


@dataclass(frozen=True)
class Decoding:
    """How a response was sampled.

    Attributes:
        temperature: at least 0; 0 is greedy.
        top_p: in (0, 1].
        top_k: below 1: all tokens.

    Raises:
        ConfigError: a value outside its range.
    """

    temperature: float
    top_p: float
    top_k: int = -1

    def __post_init__(self) -> None:
        if not (self.temperature >= 0.0 and 0.0 < self.top_p <= 1.0):
            raise ConfigError(
                f"decoding at temperature {self.temperature}, top-p {self.top_p}",
                expected="a temperature of at least 0 and a top-p in (0, 1]",
            )

    @property
    def as_model(self) -> bool:
        """Whether the mean is that of the model's own distribution, at temperature 1.

        So it is where that was sampled from, and where nothing was (greedy): the mean of what
        greedy decoding draws would be the stated number again.
        """
        everything = self.top_p == 1.0 and self.top_k < 1
        return self.temperature == 0.0 or (self.temperature == 1.0 and everything)


def decoded_weights(log_probs: Sequence[float], decoding: Decoding) -> NDArray[np.float64]:
    """Probability with which each candidate is drawn, float64, shape [N].

    All 0 where no candidate has any probability.

    Args:
        log_probs: of the N candidates, nats, temperature 1; -inf for an impossible one.
        decoding: not greedy. Top-k is taken first, as in vLLM; the nucleus is the fewest most
            probable candidates that hold `top_p` together.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    top = values.max(initial=-np.inf)
    if top == -np.inf:
        return np.zeros(len(values))
    weights = np.exp((values - top) / decoding.temperature)
    # Stable: of candidates that are equally probable the first is kept, on every machine.
    order = np.argsort(-weights, kind="stable")
    if decoding.top_k >= 1:
        weights[order[decoding.top_k :]] = 0.0
    weights /= weights.sum()
    before = np.cumsum(weights[order]) - weights[order]
    # The one that crosses top_p is kept: what stands before it holds less than top_p.
    weights[order[before >= decoding.top_p]] = 0.0
    return weights / weights.sum()
