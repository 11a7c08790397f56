"""verl settings that would do something else here than they say: refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caopd_verl.errors import ConfigError

if TYPE_CHECKING:
    from caopd_verl.preflight.run_context import Context

_SEQUENCE_PARALLEL = "it splits the student's logits, and the teacher's prompt is another"
_NOT_LOGGED = (
    "validation rows and recorded rollouts are written by caopd.output_dir and "
    "caopd.rollout.record_path"
)
# key -> the values that are fine, and why others are not
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "actor_rollout_ref.model.lora_rank": (
        (0,),
        "rollouts would be drawn from the base model, whatever is trained",
    ),
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": ((1,), _SEQUENCE_PARALLEL),
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": (
        (1,),
        _SEQUENCE_PARALLEL,
    ),
    "actor_rollout_ref.ref.fsdp_config.ulysses_sequence_parallel_size": ((1,), _SEQUENCE_PARALLEL),
    "actor_rollout_ref.model.use_fused_kernels": (
        (False,),
        "the divergence needs the logits, which they do not give",
    ),
    "actor_rollout_ref.actor.use_kl_loss": (
        (False,),
        "the loss is the divergence to the teacher alone",
    ),
    "actor_rollout_ref.actor.checkpoint.async_save": (
        (False,),
        "verl would not note which step was saved last, and no run could go on from it",
    ),
    "trainer.rollout_data_dir": ((None,), _NOT_LOGGED),
    "trainer.validation_data_dir": ((None,), _NOT_LOGGED),
}


def check_refused(context: Context) -> None:
    """Raises `ConfigError` for the first of them that is set.

    A key without a value is fine: verl versions differ in which keys they have.
    """
    from omegaconf import OmegaConf

    for key, (fine, why) in REFUSED.items():
        value = OmegaConf.select(context.config, key)
        if value is not None and value not in fine:
            raise ConfigError(
                f"{value!r} is not supported: {why}", where=key, expected=repr(fine[0])
            )
