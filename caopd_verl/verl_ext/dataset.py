"""From verl's data set and the model's folder to what this package works with."""

from __future__ import annotations

import json
from typing import Any

from caopd_verl.types import Example


def stop_ids_of(model_path: str, tokenizer: Any, *, trust_remote_code: bool) -> tuple[int, ...]:
    """The ids at which vLLM stops by itself, in ascending order.

    They are the tokenizer's end-of-sequence id and those of the model's generation config. Where a
    model has no generation config, vLLM makes one of the model's config.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # no generation_config.json
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        eos = config.eos_token_id
    model_ids = eos if isinstance(eos, (list, tuple)) else (eos,)
    found = {tokenizer.eos_token_id, *model_ids}
    return tuple(sorted(found - {None}))


def example_of(row: Any) -> Example:
    """A row of verl's data set as an `Example`: the inverse of `data.verl_rows.to_verl_rows`.

    Args:
        row: one row of verl's `RLHFDataset`, or of the TensorDict that verl makes of several.
    """
    info = _plain(row["extra_info"])
    # verl's data set gives the messages under this name; `prompt` is the column of the file.
    messages = [dict(message) for message in _plain(row["raw_prompt"])]
    answer = _plain(row["reward_model"])["ground_truth"]
    return Example(
        id=info["id"],
        messages=messages,
        answer=answer,
        verifier=info["verifier"],
        source=_plain(row["data_source"]),
        where=info["where"],
        meta=json.loads(info["meta"]),
        demonstration=json.loads(info["demonstration"]),
    )


def _plain(value: Any) -> Any:
    # A TensorDict wraps what is no tensor in an object that holds it as `data`.
    if isinstance(value, (dict, list, str)) or not hasattr(value, "data"):
        return value
    return value.data
