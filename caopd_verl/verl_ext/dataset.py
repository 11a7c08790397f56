"""From verl's data set and model folder to what this package works with."""

from __future__ import annotations

from typing import Any

from caopd_verl.types import Example


def stop_ids_of(model_path: str) -> tuple[int, ...]:
    """The eos ids of the model's generation config, at which vLLM stops as well; empty where it has none."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # no generation_config.json: then there are no further stop tokens
        return ()
    return () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)


def example_of(row: Any) -> Example:
    """A row of verl's data set as our Example (the inverse of `data.verl_rows.to_verl_rows`)."""

    def get(key: str) -> Any:
        value = row[key]
        return value.data if hasattr(value, "data") and not isinstance(value, (dict, list, str)) else value

    info = get("extra_info")
    return Example(
        id=info["id"],
        messages=[dict(message) for message in get("raw_prompt")],
        answer=get("reward_model")["ground_truth"],
        verifier=info["verifier"],
        source=get("data_source"),
        where=info["where"],
    )
