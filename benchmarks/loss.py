"""What a divergence costs beside the matrix products that no loss can avoid.

Four products are the floor: the student's LM head forward, its two in the backward pass, and the
teacher's head forward. Each implementation runs in a process of its own: best time of several
runs, as a ratio to the floor measured in turn with it, and peak memory above inputs and weights.

    python benchmarks/loss.py [--tokens 1024 --vocabulary 49152 --width 576] [--json]

`textbook` is the reverse KL over the full vocabulary in plain autograd. `floor` measured against
itself shows the noise of the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from caopd_verl.config import LossConfig
from caopd_verl.losses.divergence import topk_divergence

Loss = Callable[[Tensor, Tensor], Tensor]
TOP_K = 100
MIB = 2**20


def textbook(student_TV: Tensor, teacher_TV: Tensor) -> Tensor:
    """KL(S||T) by two log-softmaxes."""
    log_s = student_TV.log_softmax(-1)
    log_t = teacher_TV.log_softmax(-1)
    return (log_s.exp() * (log_s - log_t)).sum(-1).mean()


def ours(chunk_tokens: int) -> Loss:
    """Reverse KL on the student's top k and a tail bucket."""

    def loss(student_TV: Tensor, teacher_TV: Tensor) -> Tensor:
        n_tokens = student_TV.shape[0]
        loss_T, _ = topk_divergence(
            student_TV,
            teacher_TV,
            torch.zeros(n_tokens, dtype=torch.int64),
            k=TOP_K,
            alpha_T=torch.ones(n_tokens),
            temperature=1.0,
            chunk_tokens=chunk_tokens,
        )
        return loss_T.mean()

    return loss


class Products(torch.autograd.Function):
    """The four products alone, with the gradient of a loss that costs nothing."""

    @staticmethod
    def forward(ctx, hidden_TH, weight_VH, other_TH):
        student_TV = hidden_TH @ weight_VH.t()
        teacher_TV = other_TH @ weight_VH.t()
        ctx.save_for_backward(hidden_TH, weight_VH, student_TV)
        return student_TV[0, 0] + teacher_TV[0, 0]

    @staticmethod
    def backward(ctx, upstream):
        hidden_TH, weight_VH, gradient_TV = ctx.saved_tensors
        return gradient_TV @ weight_VH, gradient_TV.t() @ hidden_TH, None


def step(loss: Loss | None, hidden_TH: Tensor, weight_VH: Tensor, other_TH: Tensor) -> None:
    """Forward and backward of one implementation; None for the floor."""
    hidden_TH.grad = weight_VH.grad = None
    if loss is None:
        Products.apply(hidden_TH, weight_VH, other_TH).backward()
        return
    student_TV = hidden_TH @ weight_VH.t()
    with torch.no_grad():
        teacher_TV = other_TH @ weight_VH.t()
    loss(student_TV, teacher_TV).backward()


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Times of the implementation and of the floor, in turn, and the implementation's peak."""
    loss = {"textbook": textbook, "ours": ours(args.chunk)}.get(name)
    torch.manual_seed(0)
    hidden_TH = torch.randn(args.tokens, args.width, requires_grad=True)
    other_TH = (hidden_TH + 0.3 * torch.randn(args.tokens, args.width)).detach()
    weight_VH = (0.1 * torch.randn(args.vocabulary, args.width)).requires_grad_()
    inputs = (hidden_TH, weight_VH, other_TH)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(loss, *inputs)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MIB
    own, bare = [], []
    for _ in range(args.repeats):
        for times, implementation in ((own, loss), (bare, None)):
            start = time.perf_counter()
            step(implementation, *inputs)
            times.append(time.perf_counter() - start)
    return {"seconds": min(own), "floor_seconds": min(bare), "peak_mib": peak}


def main() -> int:
    """Measure all implementations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    chunk = LossConfig().chunk_tokens
    parser.add_argument("--chunk", type=int, default=chunk, help="tokens of a chunk")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return 0
    found = {}
    for name in ("floor", "textbook", "ours"):
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        found[name]["ratio"] = found[name]["seconds"] / found[name]["floor_seconds"]
    if args.json:
        print(json.dumps({"settings": vars(args), **found}, indent=2))
    else:
        for name, row in found.items():
            print(f"{name:10} {row['ratio']:5.2f} x the floor, peak {row['peak_mib']:6.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
