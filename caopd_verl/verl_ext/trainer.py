"""The trainer: verl's synchronous trainer with the CaOPD step, registered as `trainer_mode: caopd`.

One step, in `_step_once`: generate and verify -> targets -> revise -> balance -> (old log-probs) -> update and EMA; the
weight sync to vLLM follows in verl's own `on_step_end`. Verdicts are taken on the original text, everything after the
revision is built from the revised ids (T20). Next on the reading path: `worker.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import ResourcePoolManager
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.debug import marked_timer
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.workers.utils.padding import response_from_nested

from caopd_verl.config import CaopdConfig
from caopd_verl.core.context import encode_teacher_prompt
from caopd_verl.core.revise import find_eot_id
from caopd_verl.core.target import Target, compute_target
from caopd_verl.errors import TeacherContextError
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.methods import METHODS
from caopd_verl.methods.method import Setting, TeacherContext
from caopd_verl.types import RolloutGroup
from caopd_verl.verifiers import VERIFIERS
from caopd_verl.verl_ext import codec, step_metrics, validation
from caopd_verl.verl_ext.dataset import example_of, stop_ids_of
from caopd_verl.verl_ext.loss import N_MINI_BATCHES
from caopd_verl.verl_ext.rollout import GroupRollouts, read_groups, write_groups
from caopd_verl.verl_ext.rollout_server import GroupReplica
from caopd_verl.verl_ext.worker import CaopdWorker


@register_trainer("caopd")
class CaopdTrainer(PPOTrainerSync):
    """Trains a student on its own revised rollouts against its EMA teacher."""

    def __init__(self, config: DictConfig):
        merged = OmegaConf.merge(OmegaConf.structured(CaopdConfig), config.caopd)
        self.caopd: CaopdConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
        self.folder = Path(self.caopd.output_dir)
        self.last_validation: tuple[int, list[dict[str, Any]]] | None = None
        self._stepping = False
        super().__init__(config)
        # verl compares this name in several places to tell synchronous from asynchronous trainers: we are synchronous
        self.trainer_mode = "sync"

    # ------------------------------------------------------------------ start-up

    def _build_replay_buffer(self) -> None:
        return None  # rollouts come back in the call that asked for them

    def _init_resource_pool_mgr(self) -> None:
        self.role_worker_mapping = {Role.ActorRolloutRef: ray.remote(CaopdWorker)}
        self.mapping = {Role.ActorRolloutRef: "global_pool", Role.RewardModel: "global_pool"}
        pool = {"global_pool": [self.config.trainer.n_gpus_per_node] * self.config.trainer.nnodes}
        self.resource_pool_manager = ResourcePoolManager(
            resource_pool_spec=pool, mapping=self.mapping
        )

    def _setup(self) -> None:
        with open_dict(self.config):
            # verl hands its workers the actor_rollout_ref block only
            self.config.actor_rollout_ref.caopd = OmegaConf.structured(self.caopd)
        stock = RolloutReplicaRegistry._registry["vllm"]
        RolloutReplicaRegistry.register("vllm", lambda: GroupReplica)
        try:
            super()._setup()
        finally:
            RolloutReplicaRegistry.register("vllm", stock)

    def on_init_end(self) -> None:
        super().on_init_end()
        self.eot_id = find_eot_id(self.tokenizer)
        self.chat_kwargs = dict(self.config.data.apply_chat_template_kwargs or {})
        limit = self.config.data.max_response_length
        model = self.config.actor_rollout_ref.model
        stop_ids = stop_ids_of(
            model.path, self.tokenizer, trust_remote_code=model.trust_remote_code
        )
        self.setting = Setting(self.caopd, self.tokenizer, self.eot_id, limit, stop_ids)
        self.rollouts = GroupRollouts(
            self.llm_server_manager.server_handles,
            self.tokenizer,
            VERIFIERS,
            eot_id=self.eot_id,
            chat_kwargs=self.chat_kwargs,
            prompts_per_request=self.caopd.rollout.prompts_per_request,
        )
        self.folder.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------ one step

    def prepare_step(self) -> dict:
        return {}  # stock verl submits prompts here; ours are submitted in the step

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        self._stepping = True
        with marked_timer("gen", timing_raw):
            groups = self._generate(sample_batch_size)
            self.on_sample_end()
        with marked_timer("revise", timing_raw):
            targets = [self._target(group) for group in groups]
            rows = self._rows(groups, targets)
            metrics.update(step_metrics.of_groups(groups, targets))
            metrics.update(step_metrics.of_rows(rows))
        if not any(row.n_trained for row in rows):
            return self._empty_step(metrics)
        with marked_timer("put", timing_raw):
            batch = codec.put(
                rows,
                codec.encode(rows, codec.loss_weights(rows, self.caopd.loss)),
                self.global_steps,
            )
            batch = self._balance_batch(batch, metrics=metrics)
        if self._mini_batches * self.config.actor_rollout_ref.actor.ppo_epochs > 1:
            with marked_timer("old_log_prob", timing_raw):
                self._put_old_log_probs(batch)
        with marked_timer("update_actor", timing_raw):
            batch = self._update_actor(batch, metrics=metrics)
        return batch

    def _generate(self, n_prompts: int) -> list[RolloutGroup]:
        """K verified rollouts for each of the next prompts; recorded or replayed where asked for."""
        batch = self._next_train_batch(n_prompts)
        examples = [example_of(batch[i]) for i in range(len(batch))]
        if self.caopd.rollout.replay_path:
            return read_groups(self.caopd.rollout.replay_path, self.global_steps)
        rollout = self.config.actor_rollout_ref.rollout
        sampling = {
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k,
            "max_tokens": self.config.data.max_response_length,
            "logprobs": 0,  # of the sampled token only
        }
        uids = [f"{self.global_steps}-{i}" for i in range(len(examples))]
        groups = self.rollouts.sample(
            examples, uids, n=rollout.n, sampling=sampling, seed=self._seed("train")
        )
        if self.caopd.rollout.record_path:
            write_groups(groups, self.caopd.rollout.record_path, self.global_steps)
        return groups

    def _seed(self, purpose: str) -> int | None:
        if not self.caopd.rollout.seeded:
            return None
        base = int(self.config.data.seed or 0)
        stream = {"train": 0, "val": 1}[purpose]
        return (
            int(np.random.SeedSequence([base, stream, self.global_steps]).generate_state(1)[0])
            % 2**31
        )

    def _target(self, group: RolloutGroup) -> Target:
        setting = self.caopd.target
        return compute_target(
            [rollout.verdict.correct for rollout in group.rollouts],
            leave_one_out=setting.leave_one_out,
            shrinkage=None
            if setting.shrinkage is None
            else (setting.shrinkage[0], setting.shrinkage[1]),
        )

    def _rows(self, groups: list[RolloutGroup], targets: list[Target]) -> list[codec.Row]:
        method = METHODS[self.caopd.method]
        return [
            codec.Row(
                key=f"{group.uid}_{index}_0",
                prompt_ids=group.prompt_ids,
                trajectory=trajectory,
                teacher_prompt_ids=None
                if trajectory.context is None
                else self._teacher_prompt(trajectory.context),
                rollout_log_probs=rollout.log_probs,
            )
            for group, target in zip(groups, targets, strict=True)
            for index, (rollout, trajectory) in enumerate(
                zip(group.rollouts, method(group, target, self.setting), strict=True)
            )
        ]

    def _teacher_prompt(self, context: TeacherContext) -> list[int] | None:
        try:
            return encode_teacher_prompt(
                context.build,
                context.demo_text,
                tokenizer=self.setting.tokenizer,
                max_tokens=self.caopd.context.max_tokens,
                overlong=self.caopd.context.overlong,
                template_kwargs=self.chat_kwargs,
            )
        except TeacherContextError:
            if self.caopd.context.overlong == "error":
                raise
            return None  # not even its last two lines fit: masked, and counted as rows/teacher_overlong

    def _empty_step(self, metrics: dict) -> KVBatchMeta:
        message = f"step {self.global_steps}: no group has a teacher, there is nothing to train on"
        if self.caopd.empty_batch == "error":
            raise TeacherContextError(
                message,
                where="caopd.empty_batch",
                expected="at least one solved group, or caopd.unsolved=confidence_only",
                fix="use easier questions, more prompts or rollouts a step; "
                "caopd.empty_batch=skip goes on and counts it",
            )
        print(f"WARNING: {message}; skipped", flush=True)
        metrics["train/empty_step"] = 1
        return codec.put_nothing(self.global_steps)

    @property
    def _mini_batches(self) -> int:
        """Into how many mini-batches each pass over the step's rows is split; each of them has a share of the loss."""
        return (
            self.config.data.train_batch_size
            // self.config.actor_rollout_ref.actor.ppo_mini_batch_size
        )

    def _put_old_log_probs(self, batch: KVBatchMeta) -> None:
        """Log-probs before the step's first update, on the revised sequences (T19)."""
        temperature = self.config.actor_rollout_ref.rollout.temperature
        batch.extra_info.update(
            calculate_entropy=False, compute_loss=False, temperature=temperature
        )
        self.actor_rollout_wg.compute_log_prob(batch)
        data = tq.kv_batch_get(
            keys=batch.keys,
            partition_id=batch.partition_id,
            select_fields=["log_probs", "response_mask"],
        )
        data["old_log_probs"] = response_from_nested(data.pop("log_probs"), data["response_mask"])
        tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=data.select("old_log_probs")
        )

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        actor, rollout = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout
        size = actor.ppo_mini_batch_size * rollout.n
        batch.extra_info.update(
            {
                "calculate_entropy": False,
                "distillation_use_topk": True,  # verl's seam: our loss sees the student's logits
                "distillation_only": True,
                "global_batch_size": size,
                "mini_batch_size": size,
                "epochs": actor.ppo_epochs,
                "seed": actor.data_loader_seed,
                "dataloader_kwargs": {"shuffle": actor.shuffle},
                "temperature": rollout.temperature,
                N_MINI_BATCHES: self._mini_batches,
            }
        )
        output = self.actor_rollout_wg.update_actor(batch)
        metrics.update(step_metrics.of_update(tu.get(output, "metrics")))
        return batch

    # ------------------------------------------------------------------ validation and log

    def _validate(self) -> dict[str, float]:
        rollout = self.config.actor_rollout_ref.rollout
        examples = [example_of(self.val_dataset[i]) for i in range(len(self.val_dataset))]
        sampling = {
            "temperature": rollout.val_kwargs.temperature if rollout.val_kwargs.do_sample else 0.0,
            "top_p": rollout.val_kwargs.top_p,
            "top_k": rollout.val_kwargs.top_k,
            "max_tokens": self.config.data.max_response_length,
        }
        uids = [uuid4().hex for _ in examples]
        n = rollout.val_kwargs.n
        groups = self.rollouts.sample(
            examples, uids, n=n, sampling=sampling, seed=self._seed("val")
        )
        rows = validation.rows_of(groups)
        if self.caopd.evaluation.expected:
            decoding = Decoding(sampling["temperature"], sampling["top_p"], sampling["top_k"])
            validation.add_expected(rows, groups, self.rollouts, decoding)
        validation.write_rows(
            rows, self.folder / "validation" / f"step_{self.global_steps:06d}.jsonl"
        )
        self.last_validation = (self.global_steps, rows)
        metrics = validation.flat_metrics(rows, self.caopd.evaluation)
        if not self._stepping:  # before the first step there is no training record to join
            self._journal(self.global_steps, metrics)
        print(step_metrics.validation_line(self.global_steps, metrics), flush=True)
        return metrics

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        metrics.update({f"timing_s/{name}": seconds for name, seconds in timing_raw.items()})
        metrics.update({"training/global_step": global_steps, "training/epoch": epoch})
        tokens = metrics.get("rollout/tokens", 0)
        metrics["perf/rollout_tokens_per_s"] = tokens / timing_raw["gen"]
        self._journal(global_steps, metrics)
        print(
            step_metrics.training_line(global_steps, self.total_training_steps, metrics), flush=True
        )

    def _journal(self, step: int, metrics: dict) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            plain = {
                key: value.item() if hasattr(value, "item") else value
                for key, value in metrics.items()
            }
            file.write(json.dumps({"step": step, **plain}) + "\n")

    def write_report(self) -> None:
        """Metrics, plots of the last validation and training curves, into the output folder."""
        if self.last_validation is None:
            print("no validation was asked for (trainer.test_freq): no metrics.json, no plots")
            return
        step, rows = self.last_validation
        name = self.config.trainer.experiment_name
        validation.write_report(rows, self.folder, self.caopd.evaluation, step=step, name=name)
