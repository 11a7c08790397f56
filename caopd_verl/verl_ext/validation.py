"""Validation of a training run: judged responses as rows, their metrics for the log.

Rows are those of `caopd eval` (`evaluation.rows.row`), so that every command that reads an
evaluation reads a training run. The readout of the expected confidence is a switch
(`caopd.evaluation.expected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from caopd_verl.config import EvaluationConfig
from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.readouts.expected import expected_readouts
from caopd_verl.evaluation.readouts.names import ROW_KEYS, TRAINING_READOUTS
from caopd_verl.evaluation.readouts.readout import Readout
from caopd_verl.evaluation.rows.row import Generation, Job, Row, make_row
from caopd_verl.types import Rollout, RolloutGroup
from caopd_verl.verl_ext.rollout import GroupRollouts
from caopd_verl.verl_ext.sampling import validation_sampling

NOT_ASKED = Readout(reason="not asked for (caopd.evaluation.expected=false)")
READ_AT_ONCE = 4096  # sequences of one readout call: each travels through Ray with its prompt


def rows_of(groups: Sequence[RolloutGroup], expected: Sequence[Readout] | None) -> list[Row]:
    """One row for each response, in the order of the groups and their rollouts.

    Args:
        groups: verified rollouts.
        expected: the expected confidence of each response; None where it was not asked for.
    """
    rows: list[Row] = []
    for group in groups:
        for sample, rollout in enumerate(group.rollouts):
            generation = _generation(group, rollout)
            if expected is not None:
                generation = replace(generation, expected=expected[len(rows)])
            rows.append(make_row(Job(group.example, sample), generation))
    return rows


def read_expected(
    groups: Sequence[RolloutGroup], rollouts: GroupRollouts, decoding: Decoding
) -> list[Readout]:
    """The expected confidence of each response, in the order of the groups and their rollouts.

    Exact: single-token continuations of the cached prefix, through the same vLLM servers as the
    sampling.

    Args:
        groups: rollouts.
        rollouts: their source.
        decoding: how they were sampled.
    """
    prompts = [group.prompt_ids for group in groups for _ in group.rollouts]
    responses = [rollout.token_ids for group in groups for rollout in group.rollouts]
    return expected_readouts(
        prompts,
        responses,
        model=rollouts.next_token_log_probs,
        tokenizer=rollouts.tokenizer,
        decoding=decoding,
        max_sequences=READ_AT_ONCE,
    )


def flat_metrics(rows: Sequence[Row], config: EvaluationConfig) -> dict[str, float]:
    """Metrics of each source as one flat dict, `val/<source>/<readout>/<metric>`.

    Undefined metrics are left out, never 0.
    """
    # By the switch, not by what could be read: a readout that no response has is counted as that.
    readouts = TRAINING_READOUTS if config.expected else ("stated",)
    flat: dict[str, float] = {}
    for source in sorted({row["source"] for row in rows}):
        own = [row for row in rows if row["source"] == source]
        correct = [row["correct"] for row in own]
        for readout in readouts:
            confidence = [row[ROW_KEYS[readout]] for row in own]
            metrics = calibration_metrics(
                confidence, correct, n_bins=config.n_bins, missing=config.missing
            )
            for name, value in metrics.items():
                if value is not None:
                    flat[f"val/{source}/{readout}/{name}"] = value
        flat[f"val/{source}/truncated"] = _mean(own, "truncated")
        flat[f"val/{source}/response_tokens"] = _mean(own, "n_tokens")
    return flat


def run_settings(config: DictConfig) -> dict[str, Any]:
    """What a validation's rows depend on, for `metrics.json`; names as those of `caopd eval`."""
    task = config.caopd.task
    template = config.data.apply_chat_template_kwargs
    return {
        "source": "training",
        "method": config.caopd.method,
        "model": config.actor_rollout_ref.model.path,
        "task": f"{task.name}/val",
        "file": task.val_path or task.train_path,
        **validation_sampling(config),
        "chat_template_kwargs": OmegaConf.to_container(template) if template else {},
    }


def _generation(group: RolloutGroup, rollout: Rollout) -> Generation:
    """A rollout as a backend of an evaluation would return it."""
    return Generation(
        rollout.text,
        truncated=rollout.truncated,
        n_prompt_tokens=len(group.prompt_ids),
        n_tokens=len(rollout.token_ids),
        expected=NOT_ASKED,
        verdict=rollout.verdict,
    )


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
