"""Parsing 1,000,000 responses of 2 kB: limit 60 s on one core (issue 3).

python benchmarks/bench_parse.py [--responses 1000000]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time

from caopd_verl.core.confidence import parse

LIMIT_S, ASKED = 60.0, 1_000_000
ENDINGS = (
    "\n<answer>B</answer>\nConfidence: 0.85",
    "\n<answer>C</answer>\n**Confidence:** 90%",
    "\n<answer>A</answer>\nconfidence: .7.\n",
    "\n<answer>D</answer>",
    "\n<answer>D</answer>\nConfidence: high",
    "\n<answer>D</answer>\nConfidence: 0.9\nI hope this helps, and good luck with it!",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=ASKED)
    args = parser.parse_args()
    rng = random.Random(0)
    words = (
        "the acid reacts with base so",
        "confidence: in this step",
        "we add 12.5 g",
        "and check\n",
    )
    texts = []
    for i in range(600):
        body = " ".join(rng.choices(words, k=120))
        texts.append(body[: 2000 - len(ENDINGS[i % 6])] + ENDINGS[i % 6])
    start = time.process_time()
    for i in range(args.responses):
        parse(texts[i % 600])
    seconds = time.process_time() - start
    scaled = seconds * ASKED / args.responses
    result = {
        "responses": args.responses,
        "cpu_s": round(seconds, 2),
        "cpu_s_for_a_million": round(scaled, 2),
    }
    print(json.dumps({**result, "within_limits": scaled < LIMIT_S}))
    return 0 if scaled < LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
