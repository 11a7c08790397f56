"""One update of the student: rows to the workers, old log-probs where needed, optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import response_from_nested

from caopd_verl import pipeline
from caopd_verl.config import CaopdConfig
from caopd_verl.verl_ext import codec, step_metrics
from caopd_verl.verl_ext.loss import N_MINI_BATCHES, SAMPLING_TEMPERATURE


class Update:
    """The update step of a run.

    Args:
        config: the whole config.
        caopd: its `caopd` block.
        workers: verl's worker group of the student.
        has_teacher: whether the teacher's prompts travel too.
    """

    def __init__(self, config: DictConfig, caopd: CaopdConfig, workers: Any, *, has_teacher: bool):
        self.caopd = caopd
        self.workers = workers
        self.has_teacher = has_teacher
        self.actor = config.actor_rollout_ref.actor
        self.temperature = config.actor_rollout_ref.rollout.temperature
        self.n_ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
        # verl's mini-batches are numbers of prompts, whatever rows a prompt has
        self.n_mini_batches = config.data.train_batch_size // self.actor.ppo_mini_batch_size

    @property
    def needs_old_log_probs(self) -> bool:
        """With one optimizer step the student before it is the student that the loss sees."""
        return self.n_mini_batches * self.actor.ppo_epochs > 1

    def put(self, rows: Sequence[pipeline.UpdateRow], global_step: int) -> KVBatchMeta:
        """Hand the rows to the workers, filled up to a number that the ranks can split."""
        n_fillers = -len(rows) % self._row_multiple(len(rows))
        like = rows[0].trajectory  # a filler needs some token of the vocabulary
        filled = [*rows, *(codec.filler(like, index) for index in range(n_fillers))]
        weights = pipeline.token_weights([row.trajectory for row in filled], self.caopd)
        fields = codec.encode(filled, weights, with_teacher=self.has_teacher)
        return codec.put(filled, fields, global_step)

    def _row_multiple(self, n_rows: int) -> int:
        splits = self.n_mini_batches * self.n_ranks
        if self.actor.use_dynamic_bsz:
            return splits
        return splits * self._micro_batch(math.ceil(n_rows / splits))

    def _set_micro_batch(self, batch: KVBatchMeta) -> None:
        if not self.actor.use_dynamic_bsz:
            rows_per_rank = len(batch.keys) // (self.n_mini_batches * self.n_ranks)
            batch.extra_info["micro_batch_size_per_gpu"] = self._micro_batch(rows_per_rank)

    def _micro_batch(self, rows_per_rank: int) -> int:
        """A rank with fewer rows than its micro-batch takes them all at once."""
        return min(self.actor.ppo_micro_batch_size_per_gpu, rows_per_rank)

    def put_old_log_probs(self, batch: KVBatchMeta) -> None:
        """Log-probs before the step's first update, of the revised sequences."""
        batch.extra_info.update(
            calculate_entropy=False, compute_loss=False, temperature=self.temperature
        )
        self._set_micro_batch(batch)
        self.workers.compute_log_prob(batch)
        data = tq.kv_batch_get(
            keys=batch.keys,
            partition_id=batch.partition_id,
            select_fields=["log_probs", "response_mask"],
        )
        data["old_log_probs"] = response_from_nested(data.pop("log_probs"), data["response_mask"])
        fields = data.select("old_log_probs")
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def run(self, batch: KVBatchMeta) -> dict[str, float]:
        """The optimizer steps; returns what they log."""
        # in rows, of all ranks together: verl divides it by their number
        size = len(batch.keys) // self.n_mini_batches
        batch.extra_info.update(
            {
                "calculate_entropy": False,
                "distillation_use_topk": True,  # verl's seam: our loss sees the student's logits
                "distillation_only": True,
                "global_batch_size": size,
                "mini_batch_size": size,
                "epochs": self.actor.ppo_epochs,
                "seed": self.actor.data_loader_seed,
                "dataloader_kwargs": {"shuffle": self.actor.shuffle},
                "temperature": 1.0,
                SAMPLING_TEMPERATURE: self.temperature,
                N_MINI_BATCHES: self.n_mini_batches,
            }
        )
        self._set_micro_batch(batch)
        output = self.workers.update_actor(batch)
        return step_metrics.of_update(tu.get(output, "metrics"))
