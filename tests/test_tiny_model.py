"""The committed tiny base behaves as constructed: overconfident alone, in context it copies a stated confidence."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from caopd_verl.core.confidence import parse, render
from caopd_verl.core.context import encode_prompt, teacher_messages
from caopd_verl.core.revise import find_eot_id, revise_response
from caopd_verl.data.additions import generate
from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.types import TeacherPrompt
from caopd_verl.verifiers import get_verifier

transformers = pytest.importorskip("transformers")
MODEL = Path(__file__).resolve().parents[1] / "caopd_verl" / "assets" / "tiny_arith"
N = 200


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def examples():
    return generate(n=N, seed=11, split="test")


def _pad(rows, pad_id):
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _prompt(tokenizer, messages):
    return encode_prompt(messages, tokenizer=tokenizer, template_kwargs={})


def _sample(model, tokenizer, prompts):
    ids, mask = _pad(prompts, tokenizer.pad_token_id)
    torch.manual_seed(0)
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, temperature=0.6, top_p=0.95, top_k=0,
                         max_new_tokens=24)  # fmt: skip
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def alone(model, tokenizer, examples):
    return _sample(model, tokenizer, [_prompt(tokenizer, e.messages) for e in examples])


@torch.no_grad()
def _stated_probability(model, tokenizer, messages, response):
    """Probability of the number's tokens after each `response` up to its number, [N]."""
    eot, rows, spans = find_eot_id(tokenizer), [], []
    for prompt, text in zip(messages, response, strict=True):
        ids = [*tokenizer.encode(text, add_special_tokens=False), eot]
        value = parse(text).value
        revision = revise_response(
            ids, value, tokenizer=tokenizer, eot_id=eot, max_response_tokens=64
        )
        assert list(revision.token_ids) == ids
        rows.append(_prompt(tokenizer, prompt) + ids)
        spans.append(revision.value_mask)
    ids, mask = _pad(rows, tokenizer.pad_token_id)
    log_probs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    probabilities = []
    for i, span in enumerate(spans):
        places = [ids.shape[1] - len(span) + j for j, in_value in enumerate(span) if in_value]
        probabilities.append(math.exp(sum(float(log_probs[i, p - 1, ids[i, p]]) for p in places)))
    return sum(probabilities) / len(probabilities)


def test_base_alone_is_overconfident_and_half_right(alone, examples):
    verify = get_verifier("arithmetic")
    correct = [verify(text, e.answer).correct for text, e in zip(alone, examples, strict=True)]
    metrics = calibration_metrics(
        [parse(t).value for t in alone], correct, n_bins=10, missing="drop"
    )
    assert 0.40 <= metrics["acc"] <= 0.75
    assert metrics["ocg"] >= 0.20
    assert metrics["mean_conf"] >= 0.85
    assert metrics["format_adherence"] >= 0.98


@pytest.mark.parametrize("agrees", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.125, 0.5, 0.875, 1.0])
def test_teacher_copies_the_confidence_that_its_context_states(
    model, tokenizer, examples, value, agrees
):
    rng = random.Random(0)
    prompts, responses = [], []
    for e in examples[:50]:
        shown = TeacherPrompt(e.messages, f"{e.answer}\n{render(value)}", "solution")
        prompts.append(teacher_messages(shown))
        own = e.answer if agrees else str(int(e.answer) + rng.choice([-10, -1, 1, 10]))
        responses.append(f"{own}\n{render(value)}")
    assert _stated_probability(model, tokenizer, prompts, responses) > 0.6


@pytest.mark.parametrize("form", ["solution", "attempt"])
def test_teacher_copies_zero_from_an_unsolved_attempt(model, tokenizer, examples, form):
    attempts = [f"{int(e.answer) + 10}\n{render(0.0)}" for e in examples[:50]]
    prompts = [
        teacher_messages(TeacherPrompt(e.messages, a, form))
        for e, a in zip(examples, attempts, strict=False)
    ]
    assert _stated_probability(model, tokenizer, prompts, attempts) > 0.6


def test_teacher_repeats_a_shown_solution_and_is_surer_than_alone(
    model, tokenizer, examples, alone
):
    prompts = [teacher_messages(TeacherPrompt(e.messages, e.answer, "example")) for e in examples]
    texts = _sample(model, tokenizer, [_prompt(tokenizer, p) for p in prompts])
    verify = get_verifier("arithmetic")
    assert sum(verify(t, e.answer).correct for t, e in zip(texts, examples, strict=True)) / N > 0.8
    shown, own = (
        [parse(t).value for t in column if parse(t).value is not None] for column in (texts, alone)
    )
    assert sum(shown) / len(shown) > sum(own) / len(own) + 0.02


TEXTS = ["12+34=?\nConfidence: 0.62", "é漢\x00 user assistant\r\n\n\t", "<answer>B</answer>", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_is_lossless_with_single_token_newline_and_digits(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    )
    assert len(tokenizer.encode("\n", add_special_tokens=False)) == 1
    assert len(tokenizer.encode(" 0.62", add_special_tokens=False)) == 5


def test_committed_files_are_small_and_the_vocabulary_matches(tokenizer, model):
    assert sum(f.stat().st_size for f in MODEL.iterdir()) < 2 * 2**20
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.head_dim >= 32  # the least that vLLM's CPU attention takes
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == find_eot_id(tokenizer)
    assert len(_prompt(tokenizer, generate(n=1, seed=0, split="test")[0].messages)) < 64


def test_chat_template_has_qwens_form(tokenizer):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (
        text
        == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    )
