"""Local checkpoints: sampling, and the exact readouts against brute force without any cache."""

import json
import math

import pytest
import torch

from caopd_verl import assets
from caopd_verl.cli import BAD_INPUT, OK, main
from caopd_verl.core.context import encode_prompt
from caopd_verl.data.registry import load_task
from caopd_verl.evaluation.readouts.approximate import TokenStep, approximate_expected
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.readouts.expected import expected_confidences
from caopd_verl.evaluation.readouts.number_strings import VALUES, string_tokens, value_prefix
from caopd_verl.evaluation.readouts.p_true import (
    NO_ANSWER,
    QUESTION,
    TOO_LONG,
    follow_up,
    word_tokens,
)
from caopd_verl.evaluation.rows.row import jobs_of
from caopd_verl.evaluation.settings import Local, Sampling
from caopd_verl.evaluation.sources.local import (
    CachedContinuations,
    TransformersBackend,
    load_model,
)
from tests.smollm2 import smollm2_gguf

AS_MODEL = Decoding(temperature=1.0, top_p=1.0)
TINY = f"{assets.__path__[0]}/tiny_arith"


def smollm2():
    pytest.importorskip("gguf")
    return str(smollm2_gguf())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def backend():
    local = Local(batch_size=8, p_true=True)
    return TransformersBackend(TINY, sampling=Sampling(max_tokens=24), local=local)


@pytest.fixture(scope="module")
def questions():
    return load_task("arithmetic", path=None, seed=3, n=8, split="test")


def log_probs_in_full(model, prefix, continuations):
    """Every continuation in full, without any cache: the log-probs of its tokens, added up."""
    width = max(map(len, continuations))
    padded = [[*prefix, *tokens, *[0] * (width - len(tokens))] for tokens in continuations]
    with torch.inference_mode():
        out = model(input_ids=torch.tensor(padded), logits_to_keep=width + 1)
    log_probs = out.logits.double().log_softmax(-1)
    totals = []
    for row, tokens in zip(log_probs, continuations, strict=True):
        totals.append(sum(float(row[i, token]) for i, token in enumerate(tokens)))
    return totals


def check_against_brute_force(model, tokenizer, messages, response):
    prompt = encode_prompt(messages, tokenizer=tokenizer, template_kwargs={})
    place = value_prefix(tokenizer.encode(response, add_special_tokens=False), tokenizer)
    prefix = [*prompt, *place.ids]
    continuations = string_tokens(prefix, tokenizer=tokenizer, lead=place.lead)
    p = []
    for start in range(0, len(continuations), 26):  # all 101 at once would be large for SmolLM2
        part = continuations[start : start + 26]
        p += [math.exp(total) for total in log_probs_in_full(model, prefix, part)]
    value = sum(a * v for a, v in zip(p, VALUES, strict=True)) / sum(p)
    for max_rows in (16, 3):
        with torch.inference_mode():
            cached = CachedContinuations(model, prefix, max_rows=max_rows)
        (found,) = expected_confidences(
            cached, [prefix], [place.lead], tokenizer=tokenizer, decoding=AS_MODEL
        )
        assert found.value == pytest.approx(value, abs=1e-6)
        assert found.mass == pytest.approx(sum(p), abs=1e-6)


@pytest.mark.parametrize("stated", ["0.07", "0.62", "1.00"])
def test_the_exact_readout_agrees_with_brute_force(backend, questions, stated):
    for example in questions[:2]:
        response = f"{example.answer}\nConfidence: {stated}"
        check_against_brute_force(backend.model, backend.tokenizer, example.messages, response)


@pytest.mark.slow
def test_the_exact_readout_agrees_with_brute_force_on_smollm2():
    # In float32 the two ways of computing round apart by 2e-6, so it is checked in float64.
    model, tokenizer = load_model(smollm2(), dtype="float64", device="cpu")
    question = "Which gas do plants take in?\nConfidence: a number from 0.0 to 1.0."
    messages = [{"role": "user", "content": question}]
    check_against_brute_force(model, tokenizer, messages, "Carbon dioxide.\nConfidence: 0.95")


def test_responses_end_at_the_end_of_turn_and_cuts_are_known(backend, questions):
    done = backend.generate(jobs_of(questions, 1))
    assert [g.truncated for g in done] == [False] * 8
    assert all(g.expected.kind == "exact" and 0 < g.expected.mass <= 1 for g in done)
    assert all(g.text.count("Confidence:") == 1 and "<|im_end|>" not in g.text for g in done)
    short = TransformersBackend(TINY, sampling=Sampling(max_tokens=2), local=Local())
    assert [g.truncated for g in short.generate(jobs_of(questions[:2], 1))] == [True, True]
    (cut,) = short.generate(jobs_of(questions[:1], 1))
    assert cut.expected.reason.startswith("confidence missing")


def test_a_batch_gives_what_single_prompts_give_at_temperature_0(questions):
    sampling = Sampling(temperature=0.0, max_tokens=24)
    greedy = TransformersBackend(TINY, sampling=sampling, local=Local())
    together = [g.text for g in greedy.generate(jobs_of(questions, 1))]
    assert together == [greedy.generate([job])[0].text for job in jobs_of(questions, 1)]


def test_the_approximate_readout_is_near_the_exact_one(backend, questions):
    """Top log-probs along the sampled path, as an endpoint gives them, against the whole tree."""
    errors, stated_errors = [], []
    jobs = jobs_of(questions, 1)
    for job, done in zip(jobs, backend.generate(jobs), strict=True):
        ids = backend.tokenizer.encode(done.text, add_special_tokens=False)
        prompt = backend.prompt_ids(job.example.messages)
        steps = top_steps(backend.model, backend.tokenizer, prompt, ids, k=20)
        readout = approximate_expected(done.text, steps, backend.sampling.decoding)
        errors.append(abs(readout.value - done.expected.value))
        errors.append(abs(readout.value_t1 - done.expected.value_t1))
        stated = float(done.text.split()[-1])
        stated_errors += [abs(stated - done.expected.value), abs(stated - done.expected.value_t1)]
    assert max(errors) < 0.02
    assert sum(errors) < 0.3 * sum(stated_errors)


def top_steps(model, tokenizer, prompt, ids, k):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].double().log_softmax(-1)
    steps = []
    for i, token in enumerate(ids):
        row = logits[len(prompt) - 1 + i]
        best = row.topk(min(k, len(row)))
        top = {
            tokenizer.decode([t]): float(v)
            for v, t in zip(best.values, best.indices.tolist(), strict=True)
        }
        steps.append(TokenStep(tokenizer.decode([token]), float(row[token]), top))
    return steps


TASK = "--task arithmetic --max-tokens 24 --threads 1 --n-resamples 20 --no-progress"


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_the_command(tmp_path, capsys):
    args = ["eval", "--model", TINY, *TASK.split(), "--samples", "2", "--output", str(tmp_path)]
    assert main([*args, "--limit", "12"]) == OK
    rows = rows_of(tmp_path)
    assert len(rows) == 24
    assert main([*args, "--limit", "20"]) == OK
    again = rows_of(tmp_path)
    assert again[:24] == rows and len(again) == 40
    assert "expected" in capsys.readouterr().out


def test_p_true_agrees_with_the_words_in_full(backend, questions):
    example = questions[0]
    response = f"{example.answer}\nConfidence: 0.62"
    prefix = backend.prompt_ids(follow_up(example.messages, response))
    shown = backend.tokenizer.decode(prefix)
    assert QUESTION in shown and "0.62" not in shown  # it is not to read its stated confidence back
    totals = log_probs_in_full(backend.model, prefix, word_tokens(backend.tokenizer))
    true, false = (math.exp(total) for total in totals)
    long = [{"role": "user", "content": "x" * 2000}]
    chats = [example.messages, example.messages, long]
    asked = backend.ask(chats, [response, "Confidence: 0.9", response])
    assert asked[0].value == pytest.approx(true / (true + false), abs=1e-6)
    assert asked[0].mass == pytest.approx(true + false, rel=1e-5)
    assert asked[1:] == [NO_ANSWER, TOO_LONG]


def test_a_batch_is_read_as_each_of_its_responses_alone(backend, questions):
    prompts = [backend.prompt_ids(example.messages) for example in questions[:3]]
    texts = [f"{example.answer}\nConfidence: 0.62" for example in questions[:3]]
    responses = [backend.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    together = backend.read(prompts, responses)
    for prompt, response, found in zip(prompts, responses, together, strict=True):
        assert backend.read([prompt], [response]) == [found]


def test_p_true_by_the_command(tmp_path, capsys):
    args = ["eval", "--model", TINY, *TASK.split(), "--limit", "6", "--output", str(tmp_path / "o")]
    assert main([*args, "--p-true"]) == OK
    rows = rows_of(tmp_path / "o")
    assert all(0 <= row["p_true"] <= 1 and 0 < row["p_true_mass"] <= 1 for row in rows)
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["readouts"]["p_true"]["metrics"]["ece"]["n"] == 6
    rows_file, output = tmp_path / "o" / "rows.jsonl", tmp_path / "again"
    again = ["eval", "--responses", str(rows_file), "--output", str(output)]
    assert main([*again, "--n-resamples", "20"]) == OK
    judged = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert judged["readouts"]["p_true"]["metrics"] == metrics["readouts"]["p_true"]["metrics"]
    assert main(args) == BAD_INPUT  # the run was begun with it
    assert "p_true was True, is None" in capsys.readouterr().err
    assert main([*again, "--p-true"]) == BAD_INPUT
    assert "--p-true" in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path, capsys):
    args = ["eval", "--model", str(tmp_path / "none"), "--task", "arithmetic", "--limit", "2"]
    assert main([*args, "--output", str(tmp_path / "o")]) == BAD_INPUT
    assert "can't be loaded" in capsys.readouterr().err
    assert main([*args, "--output", str(tmp_path / "p"), "--backend", "jax"]) == BAD_INPUT
    assert "transformers or vllm" in capsys.readouterr().err
