"""The verifiers as a verl reward function, so that verl's own trainers judge as this package does.

For a baseline that is trained with stock verl, on the Parquet files that a run of this package
writes (`data.verl_rows.write_parquet`):

    reward.custom_reward_function.path=pkg://caopd_verl.verl_ext.reward
    reward.custom_reward_function.name=compute_score
"""

from __future__ import annotations

from typing import Any

from caopd_verl.core.confidence import parse
from caopd_verl.verifiers import get_verifier


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]
) -> dict[str, Any]:
    """1.0 for a correct response, else 0.0, judged by the verifier that the row names.

    Args:
        data_source: the row's source; not used.
        solution_str: the response, decoded.
        ground_truth: the gold answer.
        extra_info: as `to_verl_rows` makes it; `verifier` is read.

    Returns:
        `score`, `acc` (the same), `confidence` (None where none can be read; verl leaves None out
        of its averages) and `format` (1.0 where one can).

    Raises:
        ConfigError: there is no such verifier. DataError: the gold answer is unusable.
    """
    verdict = get_verifier(extra_info["verifier"])(solution_str, ground_truth)
    stated = parse(solution_str)
    score = float(verdict.correct)
    return {
        "score": score,
        "acc": score,
        "confidence": stated.value,
        "format": float(stated.value is not None),
    }
