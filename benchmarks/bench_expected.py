"""What the exact expected readout costs beside the generation of the response, through vLLM with prefix caching.

    python benchmarks/bench_expected.py outputs/smollm2 [--responses 32] [--tokens 500]

The model answers questions of the arithmetic task with about `--tokens` tokens (end of turn ignored; 16 fewer to 15
more, as how much of a prefix is cached depends on where it ends), as a reasoning model would; a confidence line is put
behind each response, and its number is read in full. Rounds of generation and readout alternate; printed are the
medians, their ratio, and the number of continuations a response.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from caopd_verl.data.additions import generate
from caopd_verl.evaluation.settings import Local, Sampling
from caopd_verl.verl_ext.vllm_offline import VllmBackend


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--responses", type=int, default=32, help="in flight at once")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    # vLLM asks for a share of the memory that is free: a small one, the model and its cache are small
    local = Local(dtype=args.dtype, gpu_memory=0.4, max_model_len=1024)
    backend = VllmBackend(str(Path(args.model)), sampling=Sampling(), local=local)
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    tail = backend.tokenizer.encode("\nConfidence: 0.80", add_special_tokens=False)
    rng = random.Random(0)
    questions = generate(n=args.responses * (args.rounds + 1), seed=0, split="test")
    seconds: dict[str, list[float]] = {"generation": [], "readout": []}
    continuations: list[int] = []
    ask = backend.next_token_log_probs

    def counted(sequences, wanted):
        continuations.append(len(sequences))
        return ask(sequences, wanted)

    backend.next_token_log_probs = counted  # type: ignore[method-assign]
    for index in range(args.rounds + 1):
        part = questions[index * args.responses : (index + 1) * args.responses]
        prompts = [backend.prompt_ids(example.messages) for example in part]
        lengths = [args.tokens - 16 + rng.randrange(32) for _ in prompts]
        params = [
            SamplingParams(
                temperature=0.6,
                top_p=0.95,
                max_tokens=n,
                min_tokens=n,
                ignore_eos=True,
                seed=index,
                detokenize=False,
            )
            for n in lengths
        ]
        start = time.perf_counter()
        outputs = backend.engine.generate(
            [TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False
        )
        generated = time.perf_counter()
        responses = [[*output.outputs[0].token_ids, *tail] for output in outputs]
        readouts = backend.read(prompts, responses)
        read = time.perf_counter()
        assert all(readout.value is not None for readout in readouts), readouts
        if index:  # the first round warms up
            seconds["generation"].append(generated - start)
            seconds["readout"].append(read - generated)
    generation, readout = (statistics.median(seconds[name]) for name in ("generation", "readout"))
    result = {
        "responses": args.responses,
        "tokens": args.tokens,
        "generation_s": round(generation, 2),
        "readout_s": round(readout, 3),
        "readout_share": round(readout / generation, 4),
        "shares": [round(r / g, 4) for g, r in zip(*seconds.values(), strict=True)],
        "continuations_a_response": sum(continuations) / args.responses / (args.rounds + 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
