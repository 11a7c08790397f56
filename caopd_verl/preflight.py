"""Checks and preparation before Ray starts: config, devices, model path, tokenizer, data rows, prompt lengths.

Everything that can be known to fail is found here, in seconds, with one error that names config key or file:line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from caopd_verl.config import CaopdConfig, validate
from caopd_verl.core.context import encode_prompt
from caopd_verl.core.revise import encode_segment, find_eot_id
from caopd_verl.data.registry import GENERATED, load_task
from caopd_verl.data.splits import check_disjoint
from caopd_verl.data.verl_rows import write_parquet
from caopd_verl.errors import ConfigError, DataError
from caopd_verl.methods import METHODS
from caopd_verl.types import Example

EMBEDDED = "embedded:"
ASSETS = Path(__file__).parent / "assets"


def prepare(config: DictConfig) -> None:
    """Validate the composed config and write the data files that verl reads; fills in resolved paths.

    Raises:
        ConfigError, DataError, TokenizerError: naming what is wrong and where.
    """
    caopd: CaopdConfig = OmegaConf.to_object(config.caopd)  # type: ignore[assignment]
    validate(caopd, methods=tuple(METHODS), rollouts_per_prompt=config.actor_rollout_ref.rollout.n)
    _check_batch(config)
    _check_devices(config)
    with open_dict(config):
        config.caopd.output_dir = str(Path(caopd.output_dir).absolute())
        config.actor_rollout_ref.model.path = resolve_model_path(config.actor_rollout_ref.model.path)
    model_path = config.actor_rollout_ref.model.path
    tokenizer = load_tokenizer(model_path, trust_remote_code=config.actor_rollout_ref.model.trust_remote_code)
    find_eot_id(tokenizer)
    encode_segment(0.5, tokenizer)
    _check_vocabulary(model_path, caopd)
    train, val = load_examples(config)
    kwargs = OmegaConf.to_container(config.data.apply_chat_template_kwargs) or {}
    for example in [*train, *val]:
        _check_prompt(example, tokenizer, kwargs, config.data.max_prompt_length)
    if len(train) < config.data.train_batch_size:
        raise ConfigError(
            f"{len(train)} training prompts do not fill a batch of {config.data.train_batch_size}",
            where="data.train_batch_size",
            expected=f"at most {len(train)}",
            fix="lower data.train_batch_size (and actor.ppo_mini_batch_size), or train on more rows",
        )
    write_parquet(train, config.data.train_files)
    write_parquet(val, config.data.val_files)


def resolve_model_path(path: str) -> str:
    """A local folder as it is, `embedded:NAME` as the folder in the package; a hub id stays a hub id."""
    if path.startswith(EMBEDDED):
        folder = ASSETS / path.removeprefix(EMBEDDED)
        if not (folder / "config.json").exists():
            known = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
            raise ConfigError(
                f"there is no embedded model {path!r}",
                where="actor_rollout_ref.model.path",
                expected="one of " + ", ".join(EMBEDDED + name for name in known),
            )
        return str(folder)
    local = Path(path).expanduser()
    if local.exists():
        if not (local / "config.json").exists():
            raise ConfigError(
                f"{local} holds no config.json", where="actor_rollout_ref.model.path", expected="a transformers checkpoint"
            )
        return str(local.absolute())
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise ConfigError(
            f"{path!r} does not exist",
            where="actor_rollout_ref.model.path",
            expected="a folder with a transformers checkpoint, a hub id (owner/name) or embedded:tiny_arith",
        )
    return path


def load_tokenizer(path: str, *, trust_remote_code: bool) -> Any:
    """The model's tokenizer. Raises `ConfigError` where it cannot be had."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer of {path!r} cannot be loaded: {str(error).splitlines()[0]}",
            where="actor_rollout_ref.model.path",
            expected="a folder with a transformers checkpoint, or a hub id that can be reached",
            fix="download the model first, or set +scale=cpu_tiny to try the embedded one",
        ) from error


def load_examples(config: DictConfig) -> tuple[list[Example], list[Example]]:
    """Training and validation questions; disjoint prompts."""
    task = config.caopd.task
    options: dict[str, Any] = {"path": task.train_path, "seed": task.seed}
    if task.name in GENERATED:
        train = load_task(task.name, **options, n=task.n_train, split="train")
        return train, load_task(task.name, **options, n=task.n_val, split="test")
    if task.train_path is None:
        raise ConfigError(
            f"the task {task.name!r} needs a data file",
            where="caopd.task.train_path",
            expected="the path of a JSONL file",
            fix="see docs/data.md, or set +scale=cpu_tiny to try the generated task",
        )
    if task.val_path is not None:
        train = load_task(task.name, **options, n=task.n_train, split="train")
        val = load_task(task.name, path=task.val_path, seed=task.seed, n=task.n_val, split="test")
        check_disjoint(train, val, names=("caopd.task.train_path", "caopd.task.val_path"))
        return train, val
    options["validation_fraction"] = task.val_fraction
    train = load_task(task.name, **options, n=task.n_train, split="train")
    return train, load_task(task.name, **options, n=task.n_val, split="val")


def _check_prompt(example: Example, tokenizer: Any, template_kwargs: dict, limit: int) -> None:
    n = len(encode_prompt(example.messages, tokenizer=tokenizer, template_kwargs=template_kwargs))
    if n > limit:
        raise DataError(
            f"the prompt has {n} tokens",
            where=example.where,
            expected=f"at most data.max_prompt_length={limit}",
            fix="raise data.max_prompt_length, or leave the row out of the file",
        )


def _check_vocabulary(model_path: str, caopd: CaopdConfig) -> None:
    from transformers import AutoConfig

    vocabulary = AutoConfig.from_pretrained(model_path).vocab_size
    if caopd.loss.top_k is not None and caopd.loss.top_k > vocabulary:
        raise ConfigError(
            f"k = {caopd.loss.top_k} is larger than the vocabulary of {vocabulary} tokens",
            where="caopd.loss.top_k",
            expected=f"at most {vocabulary}, or null for the full vocabulary",
        )


def _check_batch(config: DictConfig) -> None:
    batch, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if batch % mini:
        raise ConfigError(
            f"a batch of {batch} prompts does not split into mini-batches of {mini}",
            where="actor_rollout_ref.actor.ppo_mini_batch_size",
            expected="a divisor of data.train_batch_size",
        )
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    rows = mini * config.actor_rollout_ref.rollout.n
    if rows % ranks:
        raise ConfigError(
            f"{rows} rows of a mini-batch do not split over {ranks} ranks",
            where="trainer.n_gpus_per_node",
            expected="a number of ranks that divides ppo_mini_batch_size x rollout.n",
        )
    if config.actor_rollout_ref.actor.ulysses_sequence_parallel_size != 1:
        raise ConfigError(
            "sequence parallelism splits the student's logits, and the teacher's prompt is another",
            where="actor_rollout_ref.actor.ulysses_sequence_parallel_size",
            expected="1",
        )
    if config.actor_rollout_ref.actor.strategy != "fsdp2":
        raise ConfigError(
            f"strategy {config.actor_rollout_ref.actor.strategy!r}",
            where="actor_rollout_ref.actor.strategy",
            expected="fsdp2",
        )


def _check_devices(config: DictConfig) -> None:
    ranks, device = config.trainer.n_gpus_per_node, config.trainer.device
    if device == "cpu":
        logical = OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus")
        if logical is not None and ranks > logical:
            raise ConfigError(
                f"{ranks} ranks on a node with {logical} logical devices",
                where="trainer.n_gpus_per_node",
                expected=f"at most ray_kwargs.ray_init.num_gpus={logical}",
                fix="leave ray_kwargs.ray_init.num_gpus alone: it follows trainer.n_gpus_per_node",
            )
        return
    if os.environ.get("RAY_ADDRESS"):
        return  # the devices are the cluster's
    import torch

    found = torch.cuda.device_count()
    if ranks > found:
        raise ConfigError(
            f"{ranks} ranks a node, and this machine has {found} GPUs",
            where="trainer.n_gpus_per_node",
            expected=f"at most {found}",
            fix="set trainer.n_gpus_per_node, or run on CPU: +scale=cpu_tiny",
        )
