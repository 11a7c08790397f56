"""The model as exact readouts see it: a function from token ids to next-token log-probabilities.

transformers, vLLM's offline class and training's vLLM servers each give one; a table will do for a
test. Readouts need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from caopd_verl.errors import DataError

Sequences = list[list[int]]
LogProbs = Mapping[int, float]
NextTokenLogProbs = Callable[[Sequences, list[int]], Sequence[LogProbs]]
"""Called with sequences of token ids, those of one prefix side by side, and the wanted token ids.

For each sequence it gives the natural logarithms of the probabilities, at temperature 1, with which
the wanted ids follow. An id that it leaves out has probability 0. It may split a call into batches
as it likes.
"""

_TOLERANCE = 1e-3  # bf16 log-softmax rows sum to 1 only that well


def ask_model(
    model: NextTokenLogProbs, sequences: Sequences, wanted: list[int]
) -> Sequence[LogProbs]:
    """One call of the model, none where there is nothing to ask.

    Raises:
        DataError: another number of rows than of sequences.
    """
    rows = model(sequences, wanted) if sequences else []
    if len(rows) != len(sequences):
        raise DataError(f"the model callback gave {len(rows)} rows for {len(sequences)} sequences")
    return rows


def log_probs_of(row: LogProbs, tokens: Sequence[int]) -> list[float]:
    """The log-probs of some distinct tokens in one row of the model's.

    Raises:
        DataError: they are no log-probabilities.
    """
    values = [float(row.get(token, -math.inf)) for token in tokens]
    # Capped, because what is no log-probability (a logit) may be too large for exp.
    total = sum(math.exp(min(value, 1.0)) for value in values)
    if math.isnan(total) or total > 1.0 + _TOLERANCE:
        raise DataError(
            "the model callback did not return log-probabilities",
            expected="natural logarithms of probabilities that sum to 1 over the vocabulary",
            fix="apply a log-softmax to the logits",
        )
    return values
