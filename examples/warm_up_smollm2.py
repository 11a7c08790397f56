"""Teach SmolLM2-135M-Instruct the answer format of SciKnowEval, in a few minutes on CPU.

As it comes, SmolLM2-135M writes no `<answer>` tag for these prompts (0 of 24 samples at temperature
1.0), so no group ever has a success and SDPO has no demonstration. This is plain supervised
training on a few rows: the gold letter in the format that the prompt asks for, with a confidence
drawn from 0.85 to 1.00 (as overconfident as base models are).

    python examples/warm_up_smollm2.py outputs/smollm2 train.json outputs/smollm2_format
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from caopd_verl.core.confidence import render
from caopd_verl.core.context import encode_prompt
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.data.registry import load_task
from caopd_verl.types import Example

SURE = (0.85, 0.9, 0.95, 1.0)
ROWS, ROWS_A_STEP = 300, 2
LEARNING_RATE, MAX_GRADIENT = 1e-4, 1.0

Question = tuple[list[int], str]
"""A prompt's token ids and the gold letter."""


def response(letter: str, rng: random.Random) -> str:
    """The shortest response in the format that the prompt asks for."""
    reasoning = f"<reasoning>\nOption {letter} fits best.\n</reasoning>"
    confidence = render(rng.choice(SURE))
    return f"{reasoning}\n<answer>\n{letter}\n</answer>\n{confidence}"


def short_questions(examples: Sequence[Example], tokenizer: Any, max_tokens: int) -> list[Question]:
    """The questions whose prompts have at most `max_tokens` tokens."""
    found = []
    for example in examples:
        ids = encode_prompt(example.messages, tokenizer=tokenizer, template_kwargs={})
        if len(ids) <= max_tokens:
            found.append((ids, example.answer))
    return found


def response_loss(model: Any, prompt: list[int], target: list[int]) -> Tensor:
    """Mean cross-entropy of the target's tokens (nats) after the prompt."""
    logits = model(torch.tensor([[*prompt, *target]])).logits
    # The logits at a position are those of the next token.
    of_target = logits[0, len(prompt) - 1 : -1]
    return functional.cross_entropy(of_target, torch.tensor(target))


def main() -> None:
    """Train and save the checkpoint."""
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
    # The training split of the run that follows: its validation rows stay unseen.
    examples = load_task(
        "sciknoweval",
        path=args.rows,
        seed=0,
        n=ROWS,
        split="train",
        validation_fraction=args.val_fraction,
    )
    questions = short_questions(examples, tokenizer, args.max_prompt_tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(1, args.steps + 1):
        loss = torch.zeros(())
        for prompt, answer in rng.sample(questions, ROWS_A_STEP):
            text = response(answer, rng)
            target = [*tokenizer.encode(text, add_special_tokens=False), eot]
            loss = loss + response_loss(model, prompt, target) / ROWS_A_STEP
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT)
        optimizer.step()
        if step % 5 == 0:
            print(f"step {step}/{args.steps}  loss {loss.item():.3f}", flush=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
