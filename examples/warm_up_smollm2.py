"""Teach SmolLM2-135M-Instruct the answer format of SciKnowEval, in a few minutes on CPU.

As it comes, SmolLM2-135M writes no `<answer>` tag for these prompts (0 of 24 samples at T = 1.0), so no group ever has
a success and SDPO has no demonstration. This is plain supervised training on a few rows: the gold letter in the format
that the prompt asks for, with a confidence drawn from 0.85 to 1.00 (as overconfident as base models are).

    python examples/warm_up_smollm2.py outputs/smollm2 train.json outputs/smollm2_format
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from caopd_verl.core.confidence import render
from caopd_verl.core.context import encode_prompt
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.data.registry import load_task

SURE = (0.85, 0.9, 0.95, 1.0)


def response(letter: str, rng: random.Random) -> str:
    """The shortest response in the format that the prompt asks for."""
    reasoning = f"<reasoning>\nOption {letter} fits best.\n</reasoning>"
    return f"{reasoning}\n<answer>\n{letter}\n</answer>\n{render(rng.choice(SURE))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--val-fraction", type=float, default=0.2, help="rows kept out, as caopd.task.val_fraction"
    )
    parser.add_argument("--max-prompt-tokens", type=int, default=280)
    args = parser.parse_args()
    rng = random.Random(0)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
    eot = find_eot_id(tokenizer)
    # the training split of the run that follows: its validation rows stay unseen
    examples = load_task(
        "sciknoweval",
        path=args.rows,
        seed=0,
        n=300,
        split="train",
        validation_fraction=args.val_fraction,
    )
    prompts = [
        (encode_prompt(e.messages, tokenizer=tokenizer, template_kwargs={}), e.answer)
        for e in examples
    ]
    prompts = [(ids, answer) for ids, answer in prompts if len(ids) <= args.max_prompt_tokens]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(1, args.steps + 1):
        loss = torch.zeros(())
        for ids, answer in rng.sample(prompts, 2):
            target = [*tokenizer.encode(response(answer, rng), add_special_tokens=False), eot]
            logits = model(torch.tensor([[*ids, *target]])).logits[0, len(ids) - 1 : -1]
            loss = loss + functional.cross_entropy(logits, torch.tensor(target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 5 == 0:
            print(f"step {step}/{args.steps}  loss {loss.item():.3f}", flush=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
