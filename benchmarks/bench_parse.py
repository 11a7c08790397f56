"""Parsing 1,000,000 responses of 2 kB: limit 60 s on one core.

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
CHARACTERS, DIFFERENT = 2000, 600
ENDINGS = (
    "\n<answer>B</answer>\nConfidence: 0.85",
    "\n<answer>C</answer>\n**Confidence:** 90%",
    "\n<answer>A</answer>\nconfidence: .7.\n",
    "\n<answer>D</answer>",
    "\n<answer>D</answer>\nConfidence: high",
    "\n<answer>D</answer>\nConfidence: 0.9\nI hope this helps, and good luck with it!",
)
# The second looks like a confidence line, so that the parser has something to reject.
PHRASES = (
    "the acid reacts with base so",
    "confidence: in this step",
    "we add 12.5 g",
    "and check\n",
)


def responses() -> list[str]:
    """Different responses of 2 kB, with each of the endings equally often."""
    rng = random.Random(0)
    texts = []
    for number in range(DIFFERENT):
        ending = ENDINGS[number % len(ENDINGS)]
        body = " ".join(rng.choices(PHRASES, k=120))
        texts.append(body[: CHARACTERS - len(ending)] + ending)
    return texts


def main() -> int:
    """Print the time as JSON; 1 where the limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=ASKED)
    args = parser.parse_args()
    texts = responses()
    start = time.process_time()
    for number in range(args.responses):
        parse(texts[number % DIFFERENT])
    seconds = time.process_time() - start
    scaled = seconds * ASKED / args.responses
    result = {
        "responses": args.responses,
        "cpu_s": round(seconds, 2),
        "cpu_s_for_a_million": round(scaled, 2),
        "within_limits": scaled < LIMIT_S,
    }
    print(json.dumps(result))
    return 0 if scaled < LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
