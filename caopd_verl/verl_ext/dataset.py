"""From verl's data set and model folder to what this package works with."""

from __future__ import annotations

from typing import Any

from caopd_verl.types import Example


def stop_ids_of(model_path: str, tokenizer: Any, *, trust_remote_code: bool) -> tuple[int, ...]:
    """The eos ids at which vLLM stops by itself: the tokenizer's, and those of the generation config.

    Where a model has no generation config, vLLM makes one of the model's config.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # no generation_config.json
        eos = AutoConfig.from_pretrained(
            model_path, trust_remote_code=trust_remote_code
        ).eos_token_id
    found = {tokenizer.eos_token_id, *(eos if isinstance(eos, (list, tuple)) else (eos,))}
    return tuple(sorted(found - {None}))


def example_of(row: Any) -> Example:
    """A row of verl's data set as our Example (the inverse of `data.verl_rows.to_verl_rows`)."""

    def get(key: str) -> Any:
        value = row[key]
        return (
            value.data
            if hasattr(value, "data") and not isinstance(value, (dict, list, str))
            else value
        )

    info = get("extra_info")
    return Example(
        id=info["id"],
        messages=[dict(message) for message in get("raw_prompt")],
        answer=get("reward_model")["ground_truth"],
        verifier=info["verifier"],
        source=get("data_source"),
        where=info["where"],
    )
