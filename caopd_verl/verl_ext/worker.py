"""The worker of one rank: student (verl's actor), EMA teacher (verl's ref module), vLLM adapter.

verl's role `actor_rollout_ref` already builds a second FSDP2 module beside the actor, wrapped in the same way on the
same mesh; here it is the teacher. Reading path: `StudentWorker.train_batch` -> `loss.CaopdLoss` -> `core.divergence`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

import ray
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from caopd_verl.config import CaopdConfig
from caopd_verl.core.ema import ema_update
from caopd_verl.errors import ConfigError, IncompatibleVersionError
from caopd_verl.verl_ext import engine  # noqa: F401  (registers the engine)
from caopd_verl.verl_ext.compat import run_id
from caopd_verl.verl_ext.loss import CaopdLoss


class StudentWorker(TrainingWorker):
    """verl's training worker, followed by the EMA of the teacher after each optimizer step (T14)."""

    teacher: TrainingWorker
    ema_rate: float

    def train_batch(self, data: TensorDict) -> TensorDict:
        output = super().train_batch(data)
        distance = 0.0
        if self.engine.step_taken:
            distance = ema_update(
                self.teacher.engine.local_state(), self.engine.local_state(), rate=self.ema_rate
            )
        if output is not None:
            metrics = tu.get(output, "metrics")
            metrics["ema/distance"] = distance
            metrics["ema/skipped"] = float(not self.engine.step_taken)
        return output


class CaopdWorker(ActorRolloutRefWorker):
    """Student, teacher and rollout adapter of one rank."""

    actor_worker_cls = StudentWorker

    def __init__(self, config: Any, role: str, **kwargs: Any):
        self.caopd = cast(
            CaopdConfig, OmegaConf.to_object(config.caopd)
        )  # put there by CaopdTrainer._setup
        super().__init__(config, role, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        if get_device_name() == "cpu":
            # verl asks for "cpu:gloo,cpu:gloo", which torch refuses; it skips a group that exists already
            initialize_global_process_group_ray(backend="gloo")
        super().init_model()
        job = f"-{ray.get_runtime_context().get_job_id()}-"
        if job not in self.rollout.zmq_handle:
            raise IncompatibleVersionError(
                f"the weight-sync socket {self.rollout.zmq_handle} is not named after Ray's job",
                expected="verl 0.9.1's name, which GroupServer makes unique",
            )
        self.rollout.zmq_handle = self.rollout.zmq_handle.replace(job, f"-{run_id()}-")
        self.actor.teacher = self.ref
        self.actor.ema_rate = self.caopd.teacher.ema_rate
        self.ref.engine.module.eval()
        vocabulary = self.actor.engine.module.config.vocab_size
        k = self.caopd.loss.top_k
        if k is not None and k > vocabulary:
            raise ConfigError(
                f"k = {k} is larger than the vocabulary of {vocabulary} tokens",
                where="caopd.loss.top_k",
                expected=f"at most {vocabulary}, or null for the full vocabulary",
            )
        self.actor.set_loss_fn(CaopdLoss(self.caopd, self.ref.engine))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(
        self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None
    ) -> None:
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        path = self._teacher_path(local_path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shards = {
            name: _local(tensor).detach().cpu()
            for name, tensor in self.ref.engine.local_state().items()
        }
        torch.save(shards, path + ".tmp")
        os.replace(
            path + ".tmp", path
        )  # a kill while writing leaves no half file under the name that is loaded
        torch.distributed.barrier()
        if self.rank == 0:
            prune_teachers(local_path)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False) -> None:
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        path = self._teacher_path(local_path)
        if not os.path.exists(path):
            raise ConfigError(
                f"the checkpoint has no EMA teacher for {self.world_size} ranks: {path} does not exist",
                where="trainer.resume_mode",
                expected="a checkpoint written by this trainer with the same number of ranks",
                fix="resume with the same trainer.n_gpus_per_node x nnodes, or set trainer.resume_mode=disable",
            )
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = self.ref.engine.local_state()
        if saved.keys() != state.keys():
            odd = sorted(saved.keys() ^ state.keys())[:5]
            raise ConfigError(
                f"{path} holds another model's teacher, it differs in {odd}",
                where="trainer.resume_mode",
            )
        with torch.no_grad():
            for name, tensor in state.items():
                _local(tensor).copy_(saved[name])

    def _teacher_path(self, actor_path: str) -> str:
        folder = os.path.join(os.path.dirname(os.path.abspath(actor_path)), "teacher")
        return os.path.join(folder, f"ema_world_size_{self.world_size}_rank_{self.rank}.pt")

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def teacher_checksum(self) -> dict[str, float]:
        """Sum of absolute values of each of the teacher's parameters, over all ranks (for tests and logs)."""
        return _checksums(self.ref.engine.local_state())

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def student_checksum(self) -> dict[str, float]:
        """The same for the student."""
        return _checksums(self.actor.engine.local_state())


def prune_teachers(actor_path: str) -> None:
    """Remove the teachers of checkpoints whose student verl has removed (`trainer.max_actor_ckpt_to_keep`)."""
    step = Path(actor_path).resolve().parent
    for other in step.parent.glob("global_step_*"):
        if other != step and not (other / "actor").exists():
            shutil.rmtree(other / "teacher", ignore_errors=True)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _checksums(state: dict[str, torch.Tensor]) -> dict[str, float]:
    sums = torch.stack([_local(tensor).detach().double().abs().sum() for tensor in state.values()])
    torch.distributed.all_reduce(sums)
    return dict(zip(state, sums.tolist(), strict=True))
