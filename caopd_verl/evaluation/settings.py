"""The one place for the defaults of `caopd eval` and its sister commands.

Training's are in `caopd_verl.config`; where both have a setting, its default comes from there.
Sampling defaults are the paper's protocol: temperature 0.6, top-p 0.95, responses of at most
8,192 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from caopd_verl.config import EvaluationConfig, Missing
from caopd_verl.evaluation.readouts.decoding import Decoding

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
_TRAINING = EvaluationConfig()
_TEMPLATE_HELP = {
    "help": "arguments of the chat template, as training's data.apply_chat_template_kwargs: "
    """'{"enable_thinking": false}'"""
}


@dataclass(frozen=True)
class Sampling:
    """How responses are asked for.

    `seed` None leaves the choice to the endpoint; local backends then take 0.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 8192
    samples: int = 1
    seed: int | None = None

    @property
    def decoding(self) -> Decoding:
        """What the stated number is drawn from. Raises `ConfigError` for values out of range."""
        return Decoding(self.temperature, self.top_p)


@dataclass(frozen=True)
class Endpoint:
    """How an OpenAI-compatible endpoint is spoken to.

    The key is read from the environment variable `api_key_env`, never from an argument or a file.
    """

    concurrency: int = 16
    timeout_s: float = 600.0  # of one attempt, from sending to the last byte
    max_attempts: int = 8
    backoff_s: float = 1.0  # doubled with each attempt, with jitter
    max_backoff_s: float = 60.0
    max_retry_after_s: float = 900.0  # a longer pause stops the run, which can be resumed
    top_logprobs: int = 20  # for the expected readout; lowered where the endpoint refuses
    max_tokens_field: str = "max_tokens"  # newer OpenAI models want max_completion_tokens
    api_key_env: str = "OPENAI_API_KEY"
    price_in: float | None = None  # US dollars for a million prompt tokens
    price_out: float | None = None  # and for a million response tokens


@dataclass(frozen=True)
class Local:
    """How a local checkpoint is run."""

    batch_size: int = 8
    dtype: Dtype = "float32"
    device: str = "cpu"
    threads: int | None = None  # of torch: beside other work, few are faster than too many
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict, metadata=_TEMPLATE_HELP)
    expected: bool = True
    p_true: bool = False  # ask after each response whether its answer is correct
    max_readout_rows: int = 16  # continuations of one cached prefix that are alive at once
    gpu_memory: float = 0.85  # vLLM: share of the accelerator's memory
    max_model_len: int | None = None  # vLLM: None is the model's own


@dataclass(frozen=True)
class Summary:
    """What `metrics.json` is computed with."""

    n_bins: int = _TRAINING.n_bins
    missing: Missing = _TRAINING.missing
    n_resamples: int = 2000
    level: float = 0.95
    seed: int = 0
    n_simulations: int = 1000  # of the noise floor
    posthoc_fraction: float = 0.5  # share of the questions that post-hoc scaling is fitted on


@dataclass(frozen=True)
class Defaults:
    """All of them."""

    sampling: Sampling = field(default_factory=Sampling)
    endpoint: Endpoint = field(default_factory=Endpoint)
    local: Local = field(default_factory=Local)
    summary: Summary = field(default_factory=Summary)


DEFAULTS = Defaults()
