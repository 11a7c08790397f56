"""What the exact expected readout costs beside the generation of the response, through vLLM.

    python benchmarks/bench_expected.py outputs/smollm2 [--responses 32] [--tokens 500]

The model answers questions of the arithmetic task with about `--tokens` tokens (end of turn
ignored; 16 fewer to 15 more, as how much of a prefix is cached depends on where it ends), as a
reasoning model would. A confidence line is put behind each response, and its number is read in
full, with prefix caching. Rounds of generation and readout alternate; printed are the medians,
their ratio, and the number of continuations a response.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from caopd_verl.data.additions import generate
from caopd_verl.evaluation.settings import Local, Sampling
from caopd_verl.types import Example
from caopd_verl.verl_ext.vllm_offline import VllmBackend

CONFIDENCE_LINE = "\nConfidence: 0.80"


class CountingBackend(VllmBackend):
    """A backend that counts the continuations that its readouts ask for."""

    n_continuations = 0

    def next_token_log_probs(
        self, sequences: list[list[int]], wanted: list[int]
    ) -> list[dict[int, float]]:
        """As the backend's own."""
        self.n_continuations += len(sequences)
        return super().next_token_log_probs(sequences, wanted)


class Benchmark:
    """A backend whose generation and readout are timed in turn.

    Args:
        backend: started.
        tokens: about how many each response has.
    """

    def __init__(self, backend: CountingBackend, tokens: int):
        self.backend, self.tokens = backend, tokens
        self.tail = backend.tokenizer.encode(CONFIDENCE_LINE, add_special_tokens=False)
        self.rng = random.Random(0)

    def round(self, questions: Sequence[Example], seed: int) -> tuple[float, float]:
        """Seconds of the generation of one response to each question, and of their readout."""
        prompts = [self.backend.prompt_ids(example.messages) for example in questions]
        start = time.perf_counter()
        outputs = self._generate(prompts, seed)
        generated = time.perf_counter()
        responses = [[*ids, *self.tail] for ids in outputs]
        readouts = self.backend.read(prompts, responses)
        read = time.perf_counter()
        assert all(readout.value is not None for readout in readouts), readouts
        return generated - start, read - generated

    def _generate(self, prompts: Sequence[list[int]], seed: int) -> list[list[int]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        params = []
        for _ in prompts:
            length = self.tokens - 16 + self.rng.randrange(32)
            one = SamplingParams(
                temperature=0.6,
                top_p=0.95,
                max_tokens=length,
                min_tokens=length,
                ignore_eos=True,
                seed=seed,
                detokenize=False,
            )
            params.append(one)
        asked = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        results = self.backend.engine.generate(asked, params, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]


def main() -> None:
    """Run the rounds and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--responses", type=int, default=32, help="in flight at once")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    # vLLM asks for a share of the free memory; the model and its cache are small.
    local = Local(dtype=args.dtype, gpu_memory=0.4, max_model_len=1024)
    backend = CountingBackend(str(Path(args.model)), sampling=Sampling(), local=local)
    benchmark = Benchmark(backend, args.tokens)
    n_rounds = args.rounds + 1
    questions = generate(n=args.responses * n_rounds, seed=0, split="test")
    rounds = []
    for index in range(n_rounds):
        first = index * args.responses
        rounds.append(benchmark.round(questions[first : first + args.responses], index))
    # The first round compiles and fills caches.
    measured = rounds[1:]
    generation = statistics.median(seconds for seconds, _ in measured)
    readout = statistics.median(seconds for _, seconds in measured)
    shares = [round(read / generated, 4) for generated, read in measured]
    result = {
        "responses": args.responses,
        "tokens": args.tokens,
        "generation_s": round(generation, 2),
        "readout_s": round(readout, 3),
        "readout_share": round(readout / generation, 4),
        "shares": shares,
        "continuations_a_response": backend.n_continuations / len(questions),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
