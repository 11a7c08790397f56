"""A batch of prompts splits into mini-batches, and each of those into micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from caopd_verl.errors import ConfigError

if TYPE_CHECKING:
    from caopd_verl.preflight.run_context import Context

ACTOR = "actor_rollout_ref.actor"
MICRO_BATCH = f"{ACTOR}.ppo_micro_batch_size_per_gpu"
LOG_PROB_BY_TOKENS = "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz"


def check_strategy(context: Context) -> None:
    """Raises `ConfigError` for another sharding strategy than FSDP2.

    The EMA teacher follows the student shard by shard and name by name, on FSDP2's DTensors.
    """
    strategy = context.config.actor_rollout_ref.actor.strategy
    if strategy != "fsdp2":
        raise ConfigError(f"strategy {strategy!r}", where=f"{ACTOR}.strategy", expected="fsdp2")


def check_mini_batch(context: Context) -> None:
    """Raises `ConfigError` unless the batch is a whole number of mini-batches (of prompts)."""
    batch = context.config.data.train_batch_size
    mini_batch = context.config.actor_rollout_ref.actor.ppo_mini_batch_size
    if mini_batch < 1 or batch % mini_batch:
        raise ConfigError(
            f"a batch of {batch} prompts does not split into mini-batches of {mini_batch}",
            where=f"{ACTOR}.ppo_mini_batch_size",
            expected="a divisor of data.train_batch_size",
        )


def check_micro_batch(context: Context) -> None:
    """Raises `ConfigError` for a micro-batch that is no number of rows.

    Any number will do: the update fills a step's rows up to what ranks and micro-batches split.
    With `use_dynamic_bsz` micro-batches are filled by tokens.
    """
    actor = context.config.actor_rollout_ref.actor
    size = actor.ppo_micro_batch_size_per_gpu
    # verl's own default is null
    usable = isinstance(size, int) and size >= 1
    if not actor.use_dynamic_bsz and not usable:
        raise ConfigError(
            f"micro-batches of {size}",
            where=MICRO_BATCH,
            expected="a number of rows, at least 1",
            fix=f"set {MICRO_BATCH}, or use_dynamic_bsz=true",
        )


def check_batching_rule(context: Context) -> None:
    """Raises `ConfigError` where updates fill micro-batches by tokens and log-probs do not."""
    updates = context.config.actor_rollout_ref.actor.use_dynamic_bsz
    log_probs = context.config.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz
    if updates != log_probs:
        raise ConfigError(
            f"updates have use_dynamic_bsz={updates}, log-probs the other one",
            where=LOG_PROB_BY_TOKENS,
            expected="the same for both: verl runs them on one engine",
            fix=f"set {LOG_PROB_BY_TOKENS}={updates}",
        )


def check_batch_is_filled(context: Context) -> None:
    """Raises `ConfigError` for fewer training prompts than a batch takes: no step would be made."""
    found, batch = len(context.questions.train), context.config.data.train_batch_size
    if found < batch:
        raise ConfigError(
            f"{found} training prompts do not fill a batch of {batch}",
            where="data.train_batch_size",
            expected=f"at most {found}",
            fix="lower data.train_batch_size (and actor.ppo_mini_batch_size), or train on more "
            "rows",
        )
