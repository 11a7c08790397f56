"""A checkpoint is asked as it was in training: token for token the same prompts everywhere."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from caopd_verl import assets
from caopd_verl.core.context import encode_prompt
from caopd_verl.data.additions import generate
from caopd_verl.evaluation.rows.row import jobs_of
from caopd_verl.evaluation.settings import Local, Sampling

THINKS = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
QUESTIONS = generate(n=3, seed=0, split="test")
NOT_THINKING = {"enable_thinking": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The embedded model with a chat template that thinks unless it is told not to."""
    folder = tmp_path_factory.mktemp("model") / "thinks"
    shutil.copytree(Path(next(iter(assets.__path__))) / "tiny_arith", folder)
    (folder / "chat_template.jinja").write_text(THINKS)
    return folder


@pytest.fixture(scope="module")
def in_training(checkpoint, verl_on_cpu) -> list[list[int]]:
    """The prompts of training's rollouts, validation and checks before the start."""
    from caopd_verl.preflight.model_files import load_tokenizer
    from caopd_verl.verl_ext.rollout import GroupRollouts

    tokenizer = load_tokenizer(str(checkpoint), trust_remote_code=False)
    rollouts = GroupRollouts(
        [], tokenizer, eot_id=0, chat_kwargs=NOT_THINKING, prompts_per_request=1
    )
    prompts = [rollouts.prompt_ids(example) for example in QUESTIONS]
    for example, prompt in zip(QUESTIONS, prompts, strict=True):
        checked = encode_prompt(example.messages, tokenizer=tokenizer, template_kwargs=NOT_THINKING)
        thinking = encode_prompt(example.messages, tokenizer=tokenizer, template_kwargs={})
        assert checked == prompt != thinking  # the argument does something
    return prompts


@pytest.mark.parametrize("kwargs", [NOT_THINKING, {}], ids=["not_thinking", "thinking"])
def test_transformers_is_asked_as_in_training(checkpoint, in_training, kwargs):
    from caopd_verl.evaluation.sources.local import TransformersBackend

    sampling = Sampling(max_tokens=4)
    local = Local(expected=False, threads=1, chat_template_kwargs=kwargs)
    backend = TransformersBackend(str(checkpoint), sampling=sampling, local=local)
    asked: list[list[int]] = []

    def note(module, args, given):
        if given.get("past_key_values") is None or not given["past_key_values"].get_seq_length():
            asked.extend(given["input_ids"].tolist())

    backend.model.register_forward_pre_hook(note, with_kwargs=True)
    for job in jobs_of(QUESTIONS, 1):  # one at a time, so that nothing is padded
        backend.generate([job])
    assert (asked == in_training) == (kwargs == NOT_THINKING)
    assert len(asked) == len(in_training)


class FakeLLM:
    """vLLM's offline class, with what the backend uses of it; notes the prompts."""

    def __init__(self, model: str, **_: object):
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.asked: list[list[int]] = []
        self.model_config = SimpleNamespace(max_model_len=1024)

    def get_tokenizer(self):
        return self.tokenizer

    def generate(self, prompts, params, *, use_tqdm):
        self.asked += [prompt["prompt_token_ids"] for prompt in prompts]
        output = SimpleNamespace(token_ids=[5], finish_reason="length")
        return [SimpleNamespace(outputs=[output]) for _ in prompts]


@pytest.fixture
def fake_vllm(monkeypatch):
    """vLLM is not started: no engine, no compilation."""
    platform = SimpleNamespace(is_cpu=lambda: True)
    modules = {
        "vllm": SimpleNamespace(LLM=FakeLLM, SamplingParams=dict),
        "vllm.inputs": SimpleNamespace(TokensPrompt=dict),
        "vllm.platforms": SimpleNamespace(current_platform=platform),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_vllm_is_asked_as_in_training(checkpoint, in_training, fake_vllm):
    from caopd_verl.verl_ext.vllm_offline import VllmBackend

    local = Local(expected=False, chat_template_kwargs=NOT_THINKING)
    backend = VllmBackend(str(checkpoint), sampling=Sampling(), local=local)
    backend.generate(jobs_of(QUESTIONS, 1))
    assert backend.engine.asked == in_training
