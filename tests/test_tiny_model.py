"""The shipped tiny base behaves as constructed: overconfident alone, and in context it copies."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from caopd_verl.core.confidence import parse, render
from caopd_verl.core.context import encode_prompt, teacher_messages
from caopd_verl.core.revise import revise_response
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.data.additions import generate
from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.types import TeacherPrompt
from caopd_verl.verifiers import get_verifier

transformers = pytest.importorskip("transformers")
MODEL = Path(__file__).resolve().parents[1] / "caopd_verl" / "assets" / "tiny_arith"
N = 200
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def examples():
    return generate(n=N, seed=11, split="test")


def pad_left(rows, pad_id):
    """Ids and attention mask, both [rows, longest row]."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        start = width - len(row)
        ids[i, start:] = torch.tensor(row)
        mask[i, start:] = 1
    return ids, mask


def encode(tokenizer, messages):
    return encode_prompt(messages, tokenizer=tokenizer, template_kwargs={})


def sample(model, tokenizer, chats):
    """One sampled response for each chat, as text."""
    prompts = [encode(tokenizer, messages) for messages in chats]
    ids, mask = pad_left(prompts, tokenizer.pad_token_id)
    torch.manual_seed(0)
    out = model.generate(input_ids=ids, attention_mask=mask, **SAMPLING)
    responses = out[:, ids.shape[1] :]
    return tokenizer.batch_decode(responses, skip_special_tokens=True)


@pytest.fixture(scope="module")
def alone(model, tokenizer, examples):
    """The base's own responses to the questions."""
    return sample(model, tokenizer, [example.messages for example in examples])


@torch.no_grad()
def mean_probability_of_the_number(model, tokenizer, chats, responses):
    """Mean probability of each response's stated number, given chat and response up to it."""
    eot = find_eot_id(tokenizer)
    rows, value_masks = [], []
    for messages, text in zip(chats, responses, strict=True):
        ids = [*tokenizer.encode(text, add_special_tokens=False), eot]
        # Revised to the number that it has: only the place of the number is wanted.
        revision = revise_response(
            ids, parse(text).value, tokenizer=tokenizer, eot_id=eot, max_response_tokens=64
        )
        assert list(revision.token_ids) == ids
        rows.append(encode(tokenizer, messages) + ids)
        value_masks.append(torch.tensor(revision.value_mask))
    ids, mask = pad_left(rows, tokenizer.pad_token_id)
    logits = model(input_ids=ids, attention_mask=mask).logits
    next_ids = ids[:, 1:, None]
    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, next_ids).squeeze(-1)
    probabilities = []
    for row, value_mask in zip(log_probs, value_masks, strict=True):
        of_response = row[-len(value_mask) :]
        probabilities.append(of_response[value_mask].sum().exp())
    return torch.stack(probabilities).mean().item()


def shown(example, demonstration, form):
    """The teacher's chat: the question, and behind it a demonstration."""
    return teacher_messages(TeacherPrompt(example.messages, demonstration, form))


def verdicts(texts, examples):
    verify = get_verifier("arithmetic")
    pairs = zip(texts, examples, strict=True)
    return [verify(text, example.answer).correct for text, example in pairs]


def stated(texts):
    return [parse(text).value for text in texts]


def test_base_alone_is_overconfident_and_half_right(alone, examples):
    correct = verdicts(alone, examples)
    metrics = calibration_metrics(stated(alone), correct, n_bins=10, missing="drop")
    assert 0.40 <= metrics["acc"] <= 0.75
    assert metrics["ocg"] >= 0.20
    assert metrics["mean_conf"] >= 0.85
    assert metrics["format_adherence"] >= 0.98


@pytest.mark.parametrize("agrees", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.125, 0.5, 0.875, 1.0])
def test_a_teacher_copies_the_confidence_that_its_context_states(
    model, tokenizer, examples, value, agrees
):
    """Were the number not copied, training could not move the student's towards it."""
    rng = random.Random(0)
    chats, responses = [], []
    for example in examples[:50]:
        demonstration = f"{example.answer}\n{render(value)}"
        chats.append(shown(example, demonstration, "solution"))
        slip = 0 if agrees else rng.choice([-10, -1, 1, 10])
        own = int(example.answer) + slip
        responses.append(f"{own}\n{render(value)}")
    assert mean_probability_of_the_number(model, tokenizer, chats, responses) > 0.6


@pytest.mark.parametrize("form", ["solution", "attempt"])
def test_a_teacher_copies_zero_from_an_unsolved_attempt(model, tokenizer, examples, form):
    chats, attempts = [], []
    for example in examples[:50]:
        attempt = f"{int(example.answer) + 10}\n{render(0.0)}"
        chats.append(shown(example, attempt, form))
        attempts.append(attempt)
    assert mean_probability_of_the_number(model, tokenizer, chats, attempts) > 0.6


def mean_stated(texts):
    values = [value for value in stated(texts) if value is not None]
    return sum(values) / len(values)


def test_a_teacher_repeats_a_shown_solution_and_is_surer_than_alone(
    model, tokenizer, examples, alone
):
    chats = [shown(example, example.answer, "example") for example in examples]
    texts = sample(model, tokenizer, chats)
    assert sum(verdicts(texts, examples)) / N > 0.8
    assert mean_stated(texts) > mean_stated(alone) + 0.02


TEXTS = ["12+34=?\nConfidence: 0.62", "é漢\x00 user assistant\r\n\n\t", "<answer>B</answer>", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_is_lossless(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decoded == text


@pytest.mark.parametrize(("text", "n_tokens"), [("\n", 1), (" 0.62", 5)])
def test_line_break_and_digits_are_single_tokens(tokenizer, text, n_tokens):
    assert len(tokenizer.encode(text, add_special_tokens=False)) == n_tokens


def test_the_shipped_files_are_small():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 2 * 2**20


def test_model_and_tokenizer_match(tokenizer, model):
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.head_dim >= 32  # the least that vLLM's CPU attention takes
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id == find_eot_id(tokenizer)
    (example,) = generate(n=1, seed=0, split="test")
    assert len(encode(tokenizer, example.messages)) < 64


def test_chat_template_has_qwens_form(tokenizer):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turns = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n"
    assert text == f"{turns}<|im_start|>assistant\n"
