"""The trainer: verl's synchronous trainer with our step, registered as `trainer_mode: caopd`.

It only orders the steps: generate and verify -> targets -> trajectories -> balance -> (old
log-probs) -> update and EMA; the weight sync to vLLM follows in verl's own `on_step_end`. Verdicts
are taken on the responses as sampled, everything after the revision is built from the revised ids.
Next on the reading path: `pipeline.py`, `worker.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast
from uuid import uuid4

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import ResourcePoolManager
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer
from verl.workers.rollout.replica import RolloutReplicaRegistry

from caopd_verl import pipeline, run_files
from caopd_verl.config import CaopdConfig
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.report.training import write_training_report
from caopd_verl.evaluation.rows.store import write_validation
from caopd_verl.methods import check_method
from caopd_verl.methods.method import needs_teacher
from caopd_verl.types import RolloutGroup
from caopd_verl.verl_ext import codec, samples, step_metrics, validation
from caopd_verl.verl_ext.dataset import example_of, stop_ids_of
from caopd_verl.verl_ext.rollout import GroupRollouts, read_groups, write_groups
from caopd_verl.verl_ext.rollout_server import GroupReplica
from caopd_verl.verl_ext.sampling import (
    Purpose,
    step_seed,
    training_sampling,
    validation_sampling,
)
from caopd_verl.verl_ext.services import VerlServices
from caopd_verl.verl_ext.update import Update
from caopd_verl.verl_ext.worker import CaopdWorker

TARGETS_FILE = "targets.json"  # of a checkpoint: the memory of the target rule


@register_trainer("caopd")
class CaopdTrainer(PPOTrainerSync):
    """Trains a student on its own rollouts, by one of `methods.METHODS`."""

    def __init__(self, config: DictConfig):
        merged = OmegaConf.merge(OmegaConf.structured(CaopdConfig), config.caopd)
        self.caopd = cast(CaopdConfig, OmegaConf.to_object(merged))
        self.folder = Path(self.caopd.output_dir)
        rollouts = config.actor_rollout_ref.rollout.n
        self.method = check_method(self.caopd, rollouts)
        self.plan = self.method.plan(self.caopd, rollouts)
        self.targets = pipeline.target_rule(self.caopd)
        self.has_teacher = needs_teacher(self.method, self.caopd)
        self.last_validation: int | None = None
        self._stepping = False
        super().__init__(config)
        # verl compares this name to tell synchronous from asynchronous trainers
        self.trainer_mode = "sync"

    # ------------------------------------------------------------------ start-up

    def _build_replay_buffer(self) -> None:
        return None  # rollouts come back in the call that asked for them

    def _init_resource_pool_mgr(self) -> None:
        role = Role.ActorRolloutRef if self.has_teacher else Role.ActorRollout
        self.role_worker_mapping = {role: ray.remote(CaopdWorker)}
        self.mapping = {role: "global_pool", Role.RewardModel: "global_pool"}
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
        """Rollouts and services, once tokenizer and vLLM servers are ready."""
        super().on_init_end()
        eot_id = find_eot_id(self.tokenizer)
        model = self.config.actor_rollout_ref.model
        self.chat_kwargs = dict(self.config.data.apply_chat_template_kwargs or {})
        stop_ids = stop_ids_of(
            model.path, self.tokenizer, trust_remote_code=model.trust_remote_code
        )
        self.services = VerlServices(
            config=self.caopd,
            algorithm=self.config.algorithm,
            tokenizer=self.tokenizer,
            eot_id=eot_id,
            stop_ids=frozenset({eot_id, *stop_ids}),
            max_response_tokens=self.config.data.max_response_length,
        )
        self.rollouts = GroupRollouts(
            self.llm_server_manager.server_handles,
            self.tokenizer,
            eot_id=eot_id,
            chat_kwargs=self.chat_kwargs,
            prompts_per_request=self.caopd.rollout.prompts_per_request,
        )
        self.update = Update(
            self.config, self.caopd, self.actor_rollout_wg, has_teacher=self.has_teacher
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        counts = self.actor_rollout_wg.parameter_counts()[0]
        shown = ", ".join(f"{role} {count:,} parameters" for role, count in counts.items())
        print(f"{self.caopd.method}: {shown}", flush=True)

    # ------------------------------------------------------------------ one step

    def prepare_step(self) -> dict:
        """Nothing: stock verl submits prompts here; ours are submitted in the step."""
        return {}

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        self._stepping = True
        with marked_timer("gen", timing_raw):  # the logged throughput reads this name
            groups = self._generate(sample_batch_size)
            self.on_sample_end()
        with marked_timer("revise", timing_raw):
            targets = pipeline.targets_of(groups, self.plan, self.targets)
            rows = self._rows(groups, targets)
            metrics.update(step_metrics.of_groups(groups, targets))
            metrics.update(step_metrics.of_rows(rows))
        self._write_samples(groups, rows)
        if not any(row.trajectory.n_trained for row in rows):
            pipeline.report_empty_step(self.global_steps, self.caopd)
            metrics["train/empty_step"] = 1
            return codec.put_nothing(self.global_steps)
        with marked_timer("put", timing_raw):
            batch = self.update.put(rows, self.global_steps)
            batch = self._balance_batch(batch, metrics=metrics)
        if self.update.needs_old_log_probs:
            with marked_timer("old_log_prob", timing_raw):
                self.update.put_old_log_probs(batch)
        with marked_timer("update_actor", timing_raw):
            metrics.update(self.update.run(batch))
        return batch

    def _generate(self, n_prompts: int) -> list[RolloutGroup]:
        """Verified rollouts for each of the next prompts; recorded or replayed where asked for."""
        batch = self._next_train_batch(n_prompts)
        examples = [example_of(batch[i]) for i in range(len(batch))]
        if self.caopd.rollout.replay_path:
            return read_groups(self.caopd.rollout.replay_path, self.global_steps)
        sampling = training_sampling(self.config)
        # By place, not by text: the same question twice in a batch makes two groups.
        uids = [f"{self.global_steps}-{i}" for i in range(len(examples))]
        groups = self.rollouts.sample(
            examples, uids, n=self.plan.n, sampling=sampling, seed=self._seed("train")
        )
        if self.caopd.rollout.record_path:
            write_groups(groups, self.caopd.rollout.record_path, self.global_steps)
        return groups

    def _seed(self, purpose: Purpose) -> int | None:
        if not self.caopd.rollout.seeded:
            return None
        return step_seed(int(self.config.data.seed or 0), purpose, self.global_steps)

    def _rows(self, groups: list[RolloutGroup], targets: list) -> list[pipeline.UpdateRow]:
        trajectories = pipeline.trajectories_of(groups, targets, self.method, self.services)
        return pipeline.update_rows(
            trajectories,
            tokenizer=self.tokenizer,
            config=self.caopd,
            template_kwargs=self.chat_kwargs,
        )

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        return dp_size  # the step is filled up already

    def _write_samples(self, groups: list[RolloutGroup], rows: list[pipeline.UpdateRow]) -> None:
        every = self.caopd.rollout.samples_freq
        # The first step is among them: what is wrong shows there.
        if every == 0 or (self.global_steps - 1) % every:
            return
        chosen = samples.sample_rows(
            groups,
            rows,
            n=self.caopd.rollout.samples_n,
            step=self.global_steps,
            tokenizer=self.tokenizer,
        )
        path = self.folder / run_files.SAMPLES / run_files.step_file(self.global_steps)
        samples.write_samples(chosen, path)

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self) -> None:
        # Before verl's own part, which ends by noting the step as complete.
        state = self.targets.state_dict()
        if state:
            folder = (
                Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
            )
            folder.mkdir(parents=True, exist_ok=True)
            (folder / TARGETS_FILE).write_text(json.dumps(state), encoding="utf-8")
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if not self.global_steps:
            return
        trainer = self.config.trainer
        named = trainer.resume_mode == "resume_path"
        newest = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
        path = (Path(trainer.resume_from_path) if named else newest) / TARGETS_FILE
        if path.exists():
            self.targets.load_state_dict(json.loads(path.read_text(encoding="utf-8")))

    # ------------------------------------------------------------------ validation and log

    def _validate(self) -> dict[str, float]:
        examples = [example_of(self.val_dataset[i]) for i in range(len(self.val_dataset))]
        sampling = validation_sampling(self.config)
        uids = [uuid4().hex for _ in examples]
        n = self.config.actor_rollout_ref.rollout.val_kwargs.n
        groups = self.rollouts.sample(
            examples, uids, n=n, sampling=sampling, seed=self._seed("val")
        )
        expected = None
        if self.caopd.evaluation.expected:
            decoding = Decoding(sampling["temperature"], sampling["top_p"], sampling["top_k"])
            expected = validation.read_expected(groups, self.rollouts, decoding)
        rows = validation.rows_of(groups, expected)
        write_validation(rows, self.folder, self.global_steps)
        self.last_validation = self.global_steps
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
        tokens = metrics["rollout/tokens"]
        metrics["perf/rollout_tokens_per_s"] = tokens / timing_raw["gen"]
        self._journal(global_steps, metrics)
        line = step_metrics.training_line(global_steps, self.total_training_steps, metrics)
        print(line, flush=True)

    def _journal(self, step: int, metrics: dict) -> None:
        plain = {k: v.item() if hasattr(v, "item") else v for k, v in metrics.items()}
        with (self.folder / run_files.JOURNAL).open("a") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")

    def write_report(self) -> None:
        """Metrics, plots and page of the last validation, into the output folder."""
        if self.last_validation is None:
            print("no validation was asked for (trainer.test_freq): no metrics.json, no plots")
            return
        write_training_report(
            self.folder,
            self.caopd.evaluation,
            step=self.last_validation,
            name=self.config.trainer.experiment_name,
            run=validation.run_settings(self.config),
        )
