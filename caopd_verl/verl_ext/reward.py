"""Our verifiers as a verl reward function, for stock trainers (GRPO baselines) on the same verdicts.

reward.custom_reward_function.path=pkg://caopd_verl.verl_ext.reward reward.custom_reward_function.name=compute_score
"""

from __future__ import annotations

from typing import Any

from caopd_verl.core.confidence import parse
from caopd_verl.verifiers import get_verifier


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]
) -> dict[str, Any]:
    """1.0 for a correct response, else 0.0, judged by the verifier that the row names.

    Returns:
        `score`, `acc`, `confidence` (None where none can be parsed) and `format` (1.0 where one can).
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
