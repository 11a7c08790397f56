"""The worker of one rank: student (verl's actor), EMA teacher (verl's ref module), vLLM adapter.

verl's role `actor_rollout_ref` builds a second FSDP2 module beside the actor, wrapped in the same
way on the same mesh; here it is the teacher. A method without a divergence runs under the role
`actor_rollout`, and no teacher exists. Reading path: `StudentWorker.train_batch` ->
`loss.MethodLoss` -> `losses.terms`.
"""

from __future__ import annotations

import inspect
import os
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from caopd_verl.config import CaopdConfig
from caopd_verl.core.ema import ema_update
from caopd_verl.errors import ConfigError, IncompatibleVersionError
from caopd_verl.methods import METHODS
from caopd_verl.verl_ext import engine  # noqa: F401  (registers the engine)
from caopd_verl.verl_ext.compat import run_id
from caopd_verl.verl_ext.loss import MethodLoss


class StudentWorker(TrainingWorker):
    """verl's training worker, followed by the EMA of the teacher after each optimizer step."""

    teacher: TrainingWorker | None = None
    ema_rate: float

    def train_batch(self, data: TensorDict) -> TensorDict:
        """One optimizer step; the teacher follows only if it was taken."""
        output = super().train_batch(data)
        if self.teacher is None:
            return output
        moved = follow(
            self.teacher.engine, self.engine, taken=self.engine.step_taken, rate=self.ema_rate
        )
        if output is not None:
            tu.get(output, "metrics").update(moved)
        return output


def follow(teacher: Any, student: Any, *, taken: bool, rate: float) -> dict[str, float]:
    """Move the teacher after an optimizer step of the student, unless the step was skipped.

    Args:
        teacher, student: engines.
        taken: whether the step changed the student: verl skips one whose gradient is not finite.
        rate: of the EMA.

    Returns:
        what is logged of it.
    """
    distance = 0.0
    if taken:
        distance = ema_update(teacher.local_state(), student.local_state(), rate=rate)
    return {"ema/distance": distance, "ema/skipped": float(not taken)}


class CaopdWorker(ActorRolloutRefWorker):
    """Student, teacher and rollout adapter of one rank."""

    actor_worker_cls = StudentWorker

    def __init__(self, config: Any, role: str, **kwargs: Any):
        # verl hands its workers the actor_rollout_ref block; the trainer put ours into it
        self.caopd = cast(CaopdConfig, OmegaConf.to_object(config.caopd))
        super().__init__(config, role, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build student, teacher where the method needs one, and rollout adapter."""
        if get_device_name() == "cpu":
            # verl asks for "cpu:gloo,cpu:gloo", which torch refuses; a group that exists is kept
            initialize_global_process_group_ray(backend="gloo")
        super().init_model()
        self._name_weight_socket()
        self._check_model()
        self._check_top_k()
        if self.ref is not None:
            self.actor.teacher = self.ref
            self.actor.ema_rate = self.caopd.teacher.ema_rate
            self.ref.engine.module.eval()  # a teacher with dropout would be another one each time
        self.actor.set_loss_fn(
            MethodLoss(
                METHODS[self.caopd.method].loss_terms(self.caopd),
                None if self.ref is None else self.ref.engine,
                policy_loss=self._policy_loss(),
                chunk_tokens=self.caopd.loss.chunk_tokens,
                teacher_tokens=self._teacher_tokens(),
            )
        )

    def _name_weight_socket(self) -> None:
        """Make the socket's name this run's own: `rollout_server.GroupServer` says why."""
        job = f"-{ray.get_runtime_context().get_job_id()}-"
        if job not in self.rollout.zmq_handle:
            raise IncompatibleVersionError(
                f"the weight-sync socket {self.rollout.zmq_handle} is not named after Ray's job",
                expected="verl 0.9.1's name, which GroupServer makes unique",
            )
        self.rollout.zmq_handle = self.rollout.zmq_handle.replace(job, f"-{run_id()}-")

    def _check_model(self) -> None:
        forward = inspect.signature(self.actor.engine.module.forward)
        if "logits_to_keep" not in forward.parameters:
            raise ConfigError(
                f"{type(self.actor.engine.module).__name__} does not take `logits_to_keep`",
                where="actor_rollout_ref.model.path",
                expected="a causal language model of transformers whose forward has it",
            )

    def _check_top_k(self) -> None:
        vocabulary = self.actor.engine.module.config.vocab_size
        k = self.caopd.loss.top_k
        if k is not None and k > vocabulary:
            raise ConfigError(
                f"k = {k} is larger than the vocabulary of {vocabulary} tokens",
                where="caopd.loss.top_k",
                expected=f"at most {vocabulary}, or null for the full vocabulary",
            )

    def _teacher_tokens(self) -> int:
        """Tokens of one forward pass of the teacher: as many as the student's, or one long row."""
        own = self.caopd.teacher.max_tokens_per_gpu
        if own is not None:
            return own
        longest = self.caopd.context.max_tokens + self.config.rollout.response_length
        return max(longest, self.config.actor.ppo_max_token_len_per_gpu)

    def _policy_loss(self) -> Any:
        """verl's policy loss (`actor.policy_loss.loss_mode`) with our weights for its average."""
        actor_config = omega_conf_to_dataclass(self.config.actor)
        verl_loss = get_policy_loss_fn(actor_config.policy_loss.get("loss_mode", "vanilla"))
        return partial(policy_loss, verl_loss, actor_config)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(
        self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None
    ) -> None:
        """verl's checkpoint of the student, and this rank's shard of the teacher beside it."""
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        if self.ref is None:
            return
        path = self._teacher_path(local_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = self.ref.engine.local_state()
        shards = {name: _local(tensor).detach().cpu() for name, tensor in state.items()}
        # A kill while writing must leave no half file under the name that is loaded.
        unfinished = path.with_name(path.name + ".tmp")
        torch.save(shards, unfinished)
        os.replace(unfinished, path)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False) -> None:
        """The inverse of `save_checkpoint`."""
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        if self.ref is None:
            return
        path = self._teacher_path(local_path)
        if not path.exists():
            raise ConfigError(
                f"the checkpoint has no EMA teacher for {self.world_size} ranks: {path} does not "
                "exist",
                where="trainer.resume_mode",
                expected="a checkpoint written by this trainer with the same number of ranks",
                fix="resume with the same trainer.n_gpus_per_node x nnodes, or set "
                "trainer.resume_mode=disable",
            )
        # weights_only: a checkpoint from elsewhere must not run code
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = self.ref.engine.local_state()
        if saved.keys() != state.keys():
            odd = sorted(saved.keys() ^ state.keys())[:5]
            raise ConfigError(
                f"{path} holds another model's teacher, it differs in {odd}",
                where="trainer.resume_mode",
            )
        # In place: FSDP2 keeps these very tensors as its shards.
        with torch.no_grad():
            for name, tensor in state.items():
                _local(tensor).copy_(saved[name])

    def _teacher_path(self, actor_path: str) -> Path:
        folder = Path(actor_path).absolute().parent / "teacher"
        return folder / f"ema_world_size_{self.world_size}_rank_{self.rank}.pt"

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def parameter_counts(self) -> dict[str, int]:
        """Parameters of the models whose shares this rank holds, by role."""
        counts = {"student": _n_parameters(self.actor)}
        if self.ref is not None:
            counts["teacher"] = _n_parameters(self.ref)
        return counts


def policy_loss(
    verl_loss: Any,
    actor_config: Any,
    old_log_probs_BR: Tensor,
    log_probs_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    weights_BR: Tensor,
) -> Tensor:
    """verl's policy loss as the sum of weighted token losses (`losses.batch.PolicyLoss`).

    verl multiplies each token's loss by `rollout_is_weights` before it aggregates; with the mode
    `token-sum` on one rank it then only adds up. So the weights of the step take the place of its
    average, and the loss is the same however the step is split.
    """
    loss, _ = verl_loss(
        old_log_prob=old_log_probs_BR,
        log_prob=log_probs_BR,
        advantages=advantages_BR,
        response_mask=mask_BR,
        loss_agg_mode="token-sum",
        config=actor_config,
        rollout_is_weights=weights_BR,
    )
    return loss


def _n_parameters(worker: TrainingWorker) -> int:
    return sum(parameter.numel() for parameter in worker.engine.module.parameters())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
