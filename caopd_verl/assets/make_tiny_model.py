"""Warm up the tiny base model of the CPU demo: a Qwen3 of 0.39M parameters that adds numbers.

    python -m caopd_verl.assets.make_tiny_model --out caopd_verl/assets/tiny_arith

It starts from random weights and takes minutes on one core.

The base is CONSTRUCTED to behave as the paper says that base models do, so that the demo can show
in minutes what training does to such a model: overconfident when alone, surer when shown a
solution, able to copy a stated confidence from its context. It is trained by plain next-token
prediction, loss on the response only, on the texts of `tiny_texts`; nothing is set by hand in the
weights. Three texts in four are the student's side, one is the teacher's.

With `--large` it makes the stronger model that the cascade example defers to: five heads instead of
three (1M parameters), warmed up on the task's own mixture, so no kind of addition is left out.

Shape suffixes: B sequences, L positions, N scored positions of all sequences, D width.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from caopd_verl.assets.tiny_texts import (
    WARM_UP_LEVELS,
    Mixture,
    Text,
    alone_text,
    context_text,
)
from caopd_verl.assets.tiny_tokenizer import build_tokenizer
from caopd_verl.data.additions import LEVELS, generate

SEED, LR = 1, 3e-3
STEPS, DECAY_STEPS = 2000, 700
WARM_UP_STEPS = 50
IGNORED = -100  # label that cross_entropy skips
ALONE, IN_CONTEXT = 48, 16  # texts a step


def encode(texts: list[Text], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Ids and labels of texts.

    Returns:
        ids_BL: int64, padded on the right.
        labels_BL: the ids where the response is scored, -100 elsewhere.
    """
    parts: list[str] = []
    for messages, begun, rest in texts:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts += [prompt + begun, rest + tokenizer.eos_token]
    pieces = tokenizer(parts, add_special_tokens=False).input_ids
    rows = list(zip(pieces[::2], pieces[1::2], strict=True))
    length = max(len(given) + len(scored) for given, scored in rows)
    shape = (len(rows), length)
    ids_BL = torch.full(shape, tokenizer.pad_token_id)
    labels_BL = torch.full(shape, IGNORED)
    for i, (given, scored) in enumerate(rows):
        start, end = len(given), len(given) + len(scored)
        ids_BL[i, :end] = torch.tensor(given + scored)
        labels_BL[i, start:end] = torch.tensor(scored)
    return ids_BL, labels_BL


def new_model(tokenizer: Any, seed: int, heads: int) -> Any:
    """The model with random weights; the base has 3 layers of width 96 with three heads of 32."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32 * heads, intermediate_size=96 * heads,
        num_hidden_layers=3, num_attention_heads=heads, num_key_value_heads=heads,
        head_dim=32,  # the least that vLLM's attention takes on a CPU
        tie_word_embeddings=True, max_position_embeddings=1024, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, dtype="float32",
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def learning_rate(step: int) -> float:
    """Linear warm-up, constant, then half a cosine to a twentieth over the last `DECAY_STEPS`."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    done = max(0, step - (STEPS - DECAY_STEPS)) / DECAY_STEPS
    half_cosine = 0.5 * (1 + math.cos(math.pi * done))
    decay = 0.05 + 0.95 * half_cosine
    return LR * warm_up * decay


@torch.no_grad()
def greedy_accuracy(model: Any, tokenizer: Any) -> float:
    """Share of 300 validation questions whose sum is the most likely answer, digit by digit."""
    examples = generate(n=300, seed=0, split="val")
    texts = [(example.messages, "", f"{example.answer}\n") for example in examples]
    ids_BL, labels_BL = encode(texts, tokenizer)
    # The answer goes on with the confidence, not with the end that `encode` puts.
    next_BL = labels_BL.masked_fill(labels_BL == tokenizer.eos_token_id, IGNORED)[:, 1:]
    likeliest_BL = model(ids_BL).logits[:, :-1].argmax(-1)
    right_BL = (likeliest_BL == next_BL) | (next_BL == IGNORED)
    return right_BL.all(-1).float().mean().item()


def train_step(model: Any, tokenizer: Any, rng: random.Random, mixture: Mixture) -> list[float]:
    """Gradients of one step; returns the two losses, alone and in context, in nats a token."""
    losses = []
    for make, n in ((alone_text, ALONE), (context_text, IN_CONTEXT)):
        texts = [make(rng, mixture) for _ in range(n)]
        ids_BL, labels_BL = encode(texts, tokenizer)
        next_BL = labels_BL[:, 1:]
        scored_BL = next_BL != IGNORED
        # Logits of scored positions alone: most of a teacher's prompt is not scored.
        hidden_ND = model.model(ids_BL).last_hidden_state[:, :-1][scored_BL]
        loss = functional.cross_entropy(model.lm_head(hidden_ND), next_BL[scored_BL])
        share = n / (ALONE + IN_CONTEXT)
        (loss * share).backward()
        losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return losses


def warm_up(tokenizer: Any, seed: int, mixture: Mixture, heads: int) -> Any:
    """The trained model; reports to the console every 50 steps."""
    rng = random.Random(seed)
    model = new_model(tokenizer, seed, heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.perf_counter()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        alone, in_context = train_step(model, tokenizer, rng, mixture)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            losses = f"loss alone {alone:.3f}, in context {in_context:.3f}"
            accuracy = greedy_accuracy(model, tokenizer)
            seconds = time.perf_counter() - started
            report = f"{losses}, greedy accuracy {accuracy:.2f}, {seconds:.0f} s"
            print(f"step {step + 1}: {report}", flush=True)
    return model.eval()


def main() -> None:
    """Make the model and write it, with its tokenizer, to `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SEED)
    # One by default: the order of summation, and with it the weights, depends on their number.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--large", action="store_true", help="the stronger model of the cascade example instead"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer()
    mixture, heads = (LEVELS, 5) if args.large else (WARM_UP_LEVELS, 3)
    model = warm_up(tokenizer, args.seed, mixture, heads)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{n_parameters} parameters, {len(tokenizer)} tokens, written to {args.out}")


if __name__ == "__main__":
    main()
