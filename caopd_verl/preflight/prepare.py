"""Checks and preparation before Ray starts: config, devices, model path, tokenizer, data rows, prompt lengths.

Everything that can be known to fail is found here, in seconds, with one error that names config key or file:line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict

from caopd_verl.config import CaopdConfig, validate
from caopd_verl.core.context import encode_prompt
from caopd_verl.core.tokens import encode_segment, find_eot_id
from caopd_verl.data.registry import FILE_TASKS, GENERATED, Split, load_task
from caopd_verl.data.splits import check_disjoint
from caopd_verl.data.verl_rows import write_parquet
from caopd_verl.errors import ConfigError, DataError, TokenizerError
from caopd_verl.methods import check_method
from caopd_verl.preflight.refused import check_refused
from caopd_verl.preflight.resume import check_resume
from caopd_verl.types import Example

EMBEDDED = "embedded:"
ASSETS = Path(__file__).parents[1] / "assets"


def prepare(config: DictConfig) -> None:
    """Validate the composed config and write the data files that verl reads; fills in resolved paths.

    Raises:
        ConfigError, DataError, TokenizerError: naming what is wrong and where.
    """
    check_keys(config.caopd, CaopdConfig, "caopd")
    caopd: CaopdConfig = OmegaConf.to_object(config.caopd)  # type: ignore[assignment]
    validate(caopd)
    check_method(caopd, config.actor_rollout_ref.rollout.n)
    check_devices(config)
    check_batch(config)
    check_sampling(config)
    check_refused(config)
    with open_dict(config):
        config.caopd.output_dir = str(Path(caopd.output_dir).absolute())
        config.actor_rollout_ref.model.path = resolve_model_path(
            config.actor_rollout_ref.model.path
        )
    model_path = config.actor_rollout_ref.model.path
    tokenizer = load_tokenizer(
        model_path, trust_remote_code=config.actor_rollout_ref.model.trust_remote_code
    )
    check_tokenizer(tokenizer, model_path)
    _check_vocabulary(
        model_path, caopd, trust_remote_code=config.actor_rollout_ref.model.trust_remote_code
    )
    train, val = load_examples(config)
    kwargs = dict(config.data.apply_chat_template_kwargs or {})
    for example in [*train, *val]:
        _check_prompt(example, tokenizer, kwargs, config.data.max_prompt_length)
    if len(train) < config.data.train_batch_size:
        raise ConfigError(
            f"{len(train)} training prompts do not fill a batch of {config.data.train_batch_size}",
            where="data.train_batch_size",
            expected=f"at most {len(train)}",
            fix="lower data.train_batch_size (and actor.ppo_mini_batch_size), or train on more rows",
        )
    check_resume(config)
    write_parquet(train, config.data.train_files)
    write_parquet(val, config.data.val_files)


def check_keys(block: Mapping[Any, Any], schema: type, where: str) -> None:
    """Refuse keys that are not in the schema: Hydra's `+caopd.key=value` adds them unasked. Raises `ConfigError`."""
    types = get_type_hints(schema)
    for key in block:
        if key not in types:
            near = get_close_matches(str(key), types, n=1, cutoff=0.5)
            raise ConfigError(
                "there is no such key",
                where=f"{where}.{key}",
                expected="one of " + ", ".join(sorted(types)),
                fix=f"did you mean {where}.{near[0]}?" if near else None,
            )
        if is_dataclass(types[key]):
            check_keys(block[key], types[key], f"{where}.{key}")


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
                f"{local} holds no config.json",
                where="actor_rollout_ref.model.path",
                expected="a transformers checkpoint",
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


def check_tokenizer(tokenizer: Any, path: str) -> None:
    """It must end an assistant's turn and write a confidence line. Raises `TokenizerError` naming the model."""
    try:
        find_eot_id(tokenizer)
        encode_segment(0.5, tokenizer)
    except TokenizerError as error:
        where = f"actor_rollout_ref.model.path={path}"
        raise TokenizerError(
            error.what, where=where, expected=error.expected, fix=error.fix
        ) from error


def load_examples(config: DictConfig) -> tuple[list[Example], list[Example]]:
    """Training and validation questions, with disjoint prompts.

    Raises:
        ConfigError: naming the key under `caopd.task`.
        DataError: naming file and line of the row.
    """
    task = config.caopd.task
    generated = task.name in GENERATED
    if task.name in FILE_TASKS and task.train_path is None:
        raise ConfigError(
            f"the task {task.name!r} needs a data file",
            where="caopd.task.train_path",
            expected="the path of a JSONL file",
            fix="see docs/data.md, or set +scale=cpu_tiny to try the generated task",
        )
    own_file = task.val_path is not None
    fraction = None if generated or own_file else task.val_fraction
    train = _load(task, "train", path=task.train_path, n=task.n_train, validation_fraction=fraction)
    split: Split = "test" if generated or own_file else "val"
    val_path = task.val_path if generated or own_file else task.train_path
    val = _load(task, split, path=val_path, n=task.n_val, validation_fraction=fraction)
    if own_file:
        check_disjoint(train, val, names=("caopd.task.train_path", "caopd.task.val_path"))
    return train, val


def _load(task: Any, split: Split, **options: Any) -> list[Example]:
    part = "train" if split == "train" else "val"
    keys = {
        "task": "name",
        "path": f"{part}_path",
        "n": f"n_{part}",
        "arithmetic n": f"n_{part}",
        "validation_fraction": "val_fraction",
    }
    try:
        return load_task(task.name, seed=task.seed, split=split, **options)
    except ConfigError as error:
        if error.where not in keys:
            raise
        where = f"caopd.task.{keys[error.where]}"
        raise ConfigError(
            error.what, where=where, expected=error.expected, fix=error.fix
        ) from error


def _check_prompt(
    example: Example, tokenizer: Any, template_kwargs: dict[Any, Any], limit: int
) -> None:
    n = len(encode_prompt(example.messages, tokenizer=tokenizer, template_kwargs=template_kwargs))
    if n > limit:
        raise DataError(
            f"the prompt has {n} tokens",
            where=example.where,
            expected=f"at most data.max_prompt_length={limit}",
            fix="raise data.max_prompt_length, or leave the row out of the file",
        )


def _check_vocabulary(model_path: str, caopd: CaopdConfig, *, trust_remote_code: bool) -> None:
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    vocabulary = model.get_text_config().vocab_size
    if caopd.loss.top_k is not None and caopd.loss.top_k > vocabulary:
        raise ConfigError(
            f"k = {caopd.loss.top_k} is larger than the vocabulary of {vocabulary} tokens",
            where="caopd.loss.top_k",
            expected=f"at most {vocabulary}, or null for the full vocabulary",
        )


def check_batch(config: DictConfig) -> None:
    """Batch, mini-batch and ranks must divide, under the one strategy that is supported. Raises `ConfigError`."""
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
    actor = config.actor_rollout_ref.actor
    micro = actor.ppo_micro_batch_size_per_gpu
    if not actor.use_dynamic_bsz and (
        not isinstance(micro, int) or micro < 1 or (rows // ranks) % micro
    ):
        raise ConfigError(
            f"a rank's {rows // ranks} rows do not split into micro-batches of {micro}",
            where="actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
            expected="a divisor of ppo_mini_batch_size x rollout.n / ranks",
            fix="set actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu, or use_dynamic_bsz=true",
        )
    if actor.use_dynamic_bsz != config.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz:
        raise ConfigError(
            f"updates have use_dynamic_bsz={actor.use_dynamic_bsz}, log-probs the other one",
            where="actor_rollout_ref.rollout.log_prob_use_dynamic_bsz",
            expected="the same for both: verl runs them on one engine",
            fix=f"set actor_rollout_ref.rollout.log_prob_use_dynamic_bsz={actor.use_dynamic_bsz}",
        )
    if config.actor_rollout_ref.actor.strategy != "fsdp2":
        raise ConfigError(
            f"strategy {config.actor_rollout_ref.actor.strategy!r}",
            where="actor_rollout_ref.actor.strategy",
            expected="fsdp2",
        )


def check_sampling(config: DictConfig) -> None:
    """Several samples of one prompt must be drawn, not taken greedily. Raises `ConfigError`."""
    rollout = config.actor_rollout_ref.rollout
    validation = rollout.val_kwargs
    greedy = {
        "actor_rollout_ref.rollout": rollout.temperature == 0,
        "actor_rollout_ref.rollout.val_kwargs": not validation.do_sample
        or validation.temperature == 0,
    }
    for (where, is_greedy), n in zip(greedy.items(), (rollout.n, validation.n), strict=True):
        if is_greedy and n > 1:
            raise ConfigError(
                f"{n} samples a prompt under greedy decoding are {n} times the same",
                where=f"{where}.n",
                expected="1, or a temperature above 0 (and val_kwargs.do_sample=true)",
            )


def check_devices(config: DictConfig) -> None:
    """No more ranks than devices, so that Ray does not wait for ever. Raises `ConfigError`."""
    ranks, nodes, device = (
        config.trainer.n_gpus_per_node,
        config.trainer.nnodes,
        config.trainer.device,
    )
    if os.environ.get("RAY_ADDRESS"):
        return  # the devices are the cluster's
    if device == "cpu":
        logical = OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus") or 0
        if ranks * nodes > logical:
            raise ConfigError(
                f"{ranks * nodes} ranks on a machine with {logical} logical devices",
                where="trainer.n_gpus_per_node" if nodes == 1 else "trainer.nnodes",
                expected=f"at most ray_kwargs.ray_init.num_gpus={logical} ranks in all",
                fix="run with a CPU scale (+scale=cpu_tiny): there the logical devices follow trainer.n_gpus_per_node",
            )
        return
    import torch

    found = torch.cuda.device_count()
    if ranks > found:
        raise ConfigError(
            f"{ranks} ranks a node, and this machine has {found} GPUs",
            where="trainer.n_gpus_per_node",
            expected=f"at most {found}",
            fix="set trainer.n_gpus_per_node, or run on CPU: +scale=cpu_tiny",
        )
