"""Every name of verl, vLLM, Ray and TransferQueue that `verl_ext/` uses, by verl's version.

None of them is promised to stay. `compat.check` looks each one up before Ray starts. The table is
complete and has nothing too much: tests/verl_ext/test_leaned_on.py reads the source of `verl_ext/`
and compares. It asks for

* what is imported, and every attribute of what is imported: `Role.ActorRolloutRef`;
* every method and attribute of verl's classes that our subclasses override, call or assign;
* what these attributes lead to: `self.rollout.zmq_handle` is `ServerAdapter.zmq_handle`.

An entry stands under the class that defines the name, where verl's class inherits it. Abstract
methods are not listed: Python itself refuses a class that lacks one.

A new version of verl gets a row in `SUPPORTED`, with the names that differ merged over those of the
version before. Code that must differ by version belongs in one function in `compat`, not here.
"""

from __future__ import annotations

from dataclasses import dataclass

Names = dict[str, dict[str, str]]  # module -> {name, or Class.name: why it is needed}


@dataclass(frozen=True)
class Version:
    """What `verl_ext/` needs of one version of verl.

    Attributes:
        notes: what the code was written and tested against, for the error message.
        names: looked up before every run.
        cpu_names: looked up before runs with `trainer.device=cpu` alone.
        literals: strings that we set and the named function reads; it is not called by us.
    """

    notes: str
    names: Names
    cpu_names: Names
    literals: dict[str, Names]


_TRAINER: Names = {
    "verl.trainer.main_ppo": {"run_ppo": "starts Ray and the task runner"},
    "verl.trainer.ppo.core_algos": {
        "get_adv_estimator_fn": "advantages of a group, by algorithm.adv_estimator",
        "get_policy_loss_fn": "verl's policy losses, by actor.policy_loss.loss_mode",
    },
    "verl.trainer.ppo.utils": {
        "Role": "names the roles of workers",
        "Role.ActorRollout": "the student alone, where a method has no teacher",
        "Role.ActorRolloutRef": "a second FSDP2 module beside the actor: the teacher",
        "Role.RewardModel": "verl looks its pool up, although nothing runs there",
    },
    "verl.trainer.ppo.v1": {"get_trainer_cls": "the trainer class by trainer_mode"},
    "verl.trainer.ppo.v1.trainer_base": {
        "register_trainer": "makes our trainer a trainer_mode",
        "PPOTrainer._balance_batch": "splits the rows evenly over data-parallel ranks",
        "PPOTrainer._build_replay_buffer": "replaced: the call that asks for rollouts returns them",
        "PPOTrainer._compute_metrics": "replaced: ours needs no rewards or advantages",
        "PPOTrainer._get_required_batch_multiple": "replaced: a step's rows are filled up already",
        "PPOTrainer._init_resource_pool_mgr": "replaced: names the worker class and its role",
        "PPOTrainer._load_checkpoint": "what the target rule remembers is restored after it",
        "PPOTrainer._next_train_batch": "the next prompts from the resumable dataloader",
        "PPOTrainer._save_checkpoint": "what the target rule remembers is saved before it",
        "PPOTrainer._setup": "order of start-up; our worker and server classes are put in first",
        "PPOTrainer._step_once": "replaced: generate, revise, balance, update",
        "PPOTrainer._validate": "replaced: calibration metrics",
        "PPOTrainer.actor_rollout_wg": "the workers, called as one",
        "PPOTrainer.config": "the composed config",
        "PPOTrainer.global_steps": "the number of the step, from 1",
        "PPOTrainer.llm_server_manager": "knows the vLLM servers",
        "PPOTrainer.mapping": "which pool a role runs in",
        "PPOTrainer.prepare_step": "replaced: stock verl submits prompts here",
        "PPOTrainer.resource_pool_manager": "logical devices of the workers",
        "PPOTrainer.role_worker_mapping": "where our worker class is put in",
        "PPOTrainer.tokenizer": "the student's tokenizer",
        "PPOTrainer.total_training_steps": "for the console",
        "PPOTrainer.trainer_mode": "verl compares it with 'sync', so ours says so after start-up",
        "PPOTrainer.val_dataset": "the validation rows",
    },
    "verl.trainer.ppo.v1.trainer_sync": {
        "PPOTrainerSync": "weight sync and sleep of the colocated servers",
        "PPOTrainerSync.on_init_end": "servers and tokenizer are ready here",
        "PPOTrainerSync.on_sample_end": "puts the servers to sleep before the update",
    },
    "verl.trainer.ppo.checkpoint_callback": {
        "CheckpointCallback": "base of what runs after a save",
        "CheckpointCallback.on_save": "called when a checkpoint is complete",
    },
}

_WORKERS: Names = {
    "verl.single_controller.ray": {"ResourcePoolManager": "logical devices of the workers"},
    "verl.single_controller.base.decorator": {
        "register": "makes a worker's method callable from the trainer",
        "Dispatch": "how its arguments are split over the ranks",
        "Dispatch.ONE_TO_ALL": "every rank gets the same arguments",
    },
    "verl.single_controller.base.worker": {
        "Worker.rank": "file name of this rank's part of the teacher",
        "Worker.world_size": "same",
    },
    "verl.workers.engine_workers": {
        "ActorRolloutRefWorker": "base of our worker: student, teacher and rollout adapter",
        "ActorRolloutRefWorker.actor": "the student",
        "ActorRolloutRefWorker.actor_worker_cls": "replaced: our StudentWorker",
        "ActorRolloutRefWorker.compute_log_prob": "log-probs before a step's first mini-batch",
        "ActorRolloutRefWorker.config": "the actor's settings, for the policy loss",
        "ActorRolloutRefWorker.init_model": "builds teacher (ref), student (actor), adapter",
        "ActorRolloutRefWorker.load_checkpoint": "the teacher is restored after it",
        "ActorRolloutRefWorker.ref": "the teacher",
        "ActorRolloutRefWorker.rollout": "the adapter that sends weights to vLLM",
        "ActorRolloutRefWorker.save_checkpoint": "the teacher is saved after it",
        "ActorRolloutRefWorker.update_actor": "one pass of updates over the step's rows",
        "TrainingWorker": "base of the student's worker",
        "TrainingWorker.engine": "the FSDP2 engine of student or teacher",
        "TrainingWorker.set_loss_fn": "where our loss is put in",
        "TrainingWorker.train_batch": "one optimizer step; the EMA follows it",
    },
    "verl.workers.engine": {
        "EngineRegistry": "engines by model_type",
        "EngineRegistry.register": "enters ours",
    },
    "verl.workers.engine.fsdp.transformer_impl": {
        "FSDPEngineWithLMHead": "base of our engine",
        "FSDPEngineWithLMHead.prepare_model_inputs": "packing; our LM head runs at some positions",
        "FSDPEngineWithLMHead.prepare_model_outputs": "replaced in an update: the loss's readings",
        "FSDPEngine._autocast_dtype": "compute dtype of the teacher's forward",
        "FSDPEngine._build_fsdp_module": "FSDP2 wrapping; stock code offloads every teacher",
        "FSDPEngine._build_module": "loads the model; stock code does not know our model_type",
        "FSDPEngine.engine_config": "says whether the engine is the teacher's",
        "FSDPEngine.model_config": "carries the model_type",
        "FSDPEngine.module": "the model itself",
        "FSDPEngine.optimizer_step": "tells whether the step was taken; else the EMA skips it too",
    },
    "verl.workers.config.engine": {
        "EngineConfig.forward_only": "true for the teacher",
        "EngineConfig.param_offload": "the user's wish for the teacher",
    },
    "verl.workers.config.model": {"HFModelConfig.model_type": "chooses the engine"},
    "verl.workers.utils.padding": {"response_from_nested": "the response's part of log-probs"},
}

_ROLLOUT: Names = {
    "verl.workers.rollout.llm_server": {
        "LLMServerManager.server_handles": "the servers, as Ray actors",
    },
    "verl.workers.rollout.replica": {
        "RolloutReplicaRegistry": "replica classes by rollout.name",
        "RolloutReplicaRegistry._registry": "the stock class, to be put back after start-up",
        "RolloutReplicaRegistry.register": "enters ours while the servers start",
    },
    "verl.workers.rollout.vllm_rollout.vllm_async_server": {
        "vLLMHttpServer": "base of the server that answers whole groups",
        "vLLMHttpServer.engine": "vLLM's engine",
        "vLLMReplica": "launches the servers",
        "vLLMReplica.server_class": "replaced: our server",
    },
    "verl.workers.rollout.vllm_rollout.vllm_rollout": {
        "ServerAdapter.zmq_handle": "socket of the weight sync, renamed to be unique among runs",
    },
    "vllm": {
        "LLM": "`caopd eval --backend vllm`",
        "SamplingParams": "temperature, limits and stops of a request",
    },
    "vllm.inputs": {"TokensPrompt": "prompts as token ids"},
    "vllm.platforms": {
        "current_platform": "which build of vLLM this is",
        "current_platform.is_cpu": "smaller cache blocks pay on CPU alone",
    },
    "vllm.sampling_params": {
        "RequestOutputKind": "how results are handed over",
        "RequestOutputKind.FINAL_ONLY": "one result a request, at its end",
    },
    "vllm.v1.engine.async_llm": {"AsyncLLM.generate": "one request with n samples"},
}

_SHARED: Names = {
    "ray": {
        "get": "waits for the servers' answers",
        "get_runtime_context": "tells this run from others on the machine",
        "remote": "makes actors of our classes",
        "shutdown": "at the end of a run",
    },
    "transfer_queue": {
        "KVBatchMeta": "handle of the rows on their way to the workers",
        "close": "at the end of a run",
        "init": "before the workers start",
        "kv_batch_get": "log-probs from the workers",
        "kv_batch_put": "rows to the workers",
    },
    "verl.plugin.platform.platform_base": {
        "PlatformBase": "base of the cpu platform",
        "PlatformBase.is_platform_available": "says no, so that accelerators are preferred",
        "PlatformBase.rollout_env_vars": "what vLLM's own processes must know",
    },
    "verl.plugin.platform.platform_manager": {
        "PlatformRegistry": "platforms by name",
        "PlatformRegistry.register": "enters the cpu platform",
    },
    "verl.utils.config": {
        "omega_conf_to_dataclass": "settings as the policy losses want them",
        "validate_config": "verl's own checks of its settings",
    },
    "verl.utils.debug": {"marked_timer": "seconds of each part of a step"},
    "verl.utils.device": {"get_device_name": "cpu or cuda"},
    "verl.utils.distributed": {
        "initialize_global_process_group_ray": "gloo by a name that torch takes on CPU",
    },
    "verl.utils.import_utils": {"load_class_from_fqn": "finds the user's checkpoint callback"},
    "verl.utils.logging_utils": {"configure_verl_logging": "as verl's own task runner does"},
    "verl.utils.metric": {
        "AggregationType": "how readings of micro-batches are put together",
        "AggregationType.SUM": "as sums, so that means are weighted by tokens",
        "Metric": "one reading",
    },
    "verl.utils.tensordict_utils": {
        "assign_non_tensor": "puts scalars beside tensors",
        "get": "reads a field of either kind",
        "get_non_tensor_data": "reads a scalar",
    },
}

_CPU: Names = {
    "vllm.model_executor.layers.utils": {
        "dispatch_cpu_unquantized_gemm": "replaced: weights must stay where the sync finds them",
    },
}

_LITERALS: dict[str, Names] = {
    "VERL_RAY_JOB_ID": {
        "verl.workers.rollout.vllm_rollout.utils": {
            "vLLMColocateWorkerExtension._get_zmq_handle": "the receiver's name of the socket",
        },
    },
}

SUPPORTED: dict[str, Version] = {
    "0.9.1": Version(
        notes="v1 trainer, FSDP2 engines, vLLM servers",
        names={**_TRAINER, **_WORKERS, **_ROLLOUT, **_SHARED},
        cpu_names=_CPU,
        literals=_LITERALS,
    ),
}
