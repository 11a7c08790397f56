"""sdpo and caopd on hand-made groups: which rows are trained, on which tokens, under which teacher context."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caopd_verl.config import CaopdConfig, ContextConfig
from caopd_verl.core.confidence import parse
from caopd_verl.core.context import encode_prompt, encode_teacher_prompt
from caopd_verl.core.revise import find_eot_id, revise_text
from caopd_verl.core.target import compute_target
from caopd_verl.data.additions import generate
from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.methods import METHODS
from caopd_verl.methods.method import Setting
from caopd_verl.types import Rollout, RolloutGroup
from caopd_verl.verifiers import get_verifier

EXAMPLE = generate(n=1, seed=0, split="train")[0]
RIGHT = EXAMPLE.answer
WRONG = str(int(RIGHT) + 1)


@pytest.fixture
def eot(tiny_tokenizer) -> int:
    return find_eot_id(tiny_tokenizer)


@pytest.fixture
def rollout(tiny_tokenizer, eot):
    def make(text: str, *, truncated: bool = False) -> Rollout:
        ids = (
            *tiny_tokenizer.encode(text, add_special_tokens=False),
            *(() if truncated else (eot,)),
        )
        verdict = get_verifier("arithmetic")(text, EXAMPLE.answer)
        return Rollout(ids, tuple(-0.01 * i for i in range(len(ids))), text, verdict, truncated)

    return make


@pytest.fixture
def group(rollout, tiny_tokenizer):
    """A group from texts; an answer alone gets a line that states 0.90."""

    def make(*texts: str | Rollout) -> RolloutGroup:
        full = [
            t if isinstance(t, Rollout) else rollout(t if "\n" in t else f"{t}\nConfidence: 0.90")
            for t in texts
        ]
        prompt = encode_prompt(EXAMPLE.messages, tokenizer=tiny_tokenizer, template_kwargs={})
        return RolloutGroup("1-0", EXAMPLE, tuple(prompt), tuple(full))

    return make


@pytest.fixture
def run(tiny_tokenizer, eot):
    """Trajectories of a method, and the target they were made with."""

    def call(
        method: str, group: RolloutGroup, *, limit: int = 48, leave_one_out: bool = False, **config
    ):
        verdicts = [r.verdict.correct for r in group.rollouts]
        target = compute_target(verdicts, leave_one_out=leave_one_out, shrinkage=None)
        setting = Setting(CaopdConfig(method=method, **config), tiny_tokenizer, eot, limit)
        return METHODS[method](group, target, setting), target

    return call


def text_of(tokenizer, trajectory) -> str:
    return tokenizer.decode(list(trajectory.token_ids), skip_special_tokens=True)


def teacher_text(trajectory) -> str:
    return trajectory.context.build(trajectory.context.demo_text)[-1]["content"]


# ---------------------------------------------------------------------- who is trained (T16, T18)


@pytest.mark.parametrize("method", ["sdpo", "caopd"])
def test_t16_a_group_without_success_is_masked(run, group, method):
    trajectories, _ = run(method, group(WRONG, WRONG, WRONG))
    assert [t.status for t in trajectories] == ["unsolved"] * 3
    assert all(
        t.context is None and not any(t.trained_mask) and not t.confidence_only
        for t in trajectories
    )


@pytest.mark.parametrize("method", ["sdpo", "caopd"])
def test_t18_the_only_success_is_masked_and_shown_to_the_others(run, group, rollout, method):
    own = rollout(f"{RIGHT}\nConfidence: 0.70")
    trajectories, _ = run(method, group(WRONG, own, WRONG))
    assert trajectories[1].status == "no_demonstration" and trajectories[1].context is None
    for i in (0, 2):
        assert all(
            trajectories[i].trained_mask
        ) and f"Correct solution:\n\n{RIGHT}\n" in teacher_text(trajectories[i])


@pytest.mark.parametrize("method", ["sdpo", "caopd"])
@pytest.mark.parametrize("n_right", [2, 4])
def test_t18_nobody_is_shown_its_own_response(run, group, rollout, method, n_right):
    # each response is told apart by the blanks in front of its answer
    texts = [f"{' ' * i}{RIGHT if i < n_right else WRONG}\nConfidence: 0.9{i}" for i in range(4)]
    trajectories, _ = run(method, group(*texts))
    shown = [
        0 if i else 1 for i in range(4)
    ]  # the first success, the second one for the first itself
    for trajectory, source in zip(trajectories, shown, strict=True):
        assert trajectory.context.demo_text.splitlines()[0] == " " * source + RIGHT
        assert all(trajectory.trained_mask) and not trajectory.confidence_only


def test_sdpo_trains_what_was_sampled_and_shows_what_was_stated(run, group):
    own = group(RIGHT, f"{RIGHT}\nConfidence: 0.55", WRONG)
    trajectories, _ = run("sdpo", own)
    for trajectory, rollout in zip(trajectories, own.rollouts, strict=True):
        assert trajectory.token_ids == rollout.token_ids and trajectory.n_kept == len(
            rollout.token_ids
        )
        assert not any(trajectory.value_mask)
    assert trajectories[0].context.demo_text.endswith("Confidence: 0.55")
    assert trajectories[2].context.demo_text.endswith("Confidence: 0.90")


def test_sdpo_logs_the_stated_segment_apart(run, group, rollout, tiny_tokenizer):
    own = group(RIGHT, RIGHT, f"{WRONG}\nno confidence here, none at all")
    trajectories, _ = run("sdpo", own)
    marked = [
        i
        for i, m in zip(trajectories[0].token_ids, trajectories[0].confidence_mask, strict=True)
        if m
    ]
    assert tiny_tokenizer.decode(marked).strip() == "Confidence: 0.90"
    assert not any(trajectories[2].confidence_mask)


# ---------------------------------------------------------------------- what caopd states (T17, T19, T20)


def test_t17_demonstration_and_completion_state_the_same_p_hat(run, group, tiny_tokenizer):
    texts = [
        f"{RIGHT}\nConfidence: 1.00",
        f"{WRONG}\n**Confidence:** 95%",
        RIGHT,
        f"{WRONG}\nConfidence: high",
    ]
    trajectories, target = run("caopd", group(*texts))
    assert target.p_hat == 0.5
    for trajectory in trajectories:
        own = text_of(tiny_tokenizer, trajectory)
        assert own.endswith("\nConfidence: 0.50") and own.lower().count("confidence") == 1
        demo = trajectory.context.demo_text
        assert demo == f"{RIGHT}\nConfidence: 0.50"  # whatever it stated itself is nowhere
        assert teacher_text(trajectory).count("0.50") == 1
        assert not any(stated in teacher_text(trajectory) for stated in ("1.00", "0.90", "95%"))


def test_t17_a_demonstration_without_confidence_gets_one(run, group):
    trajectories, _ = run("caopd", group(f"{RIGHT}\n", WRONG, WRONG, WRONG))
    assert trajectories[1].context.demo_text == f"{RIGHT}\nConfidence: 0.25"


def test_t17_the_splice_of_the_demonstration_is_that_of_the_completion(run, group, tiny_tokenizer):
    text = f"{RIGHT}\n\n  *Confidence*: .9  \n"
    trajectories, target = run("caopd", group(text, text, WRONG))
    assert text_of(tiny_tokenizer, trajectories[0]) == revise_text(text, target.p_hat)
    assert trajectories[2].context.demo_text == revise_text(text, target.p_hat)


def test_leave_one_out_writes_each_rollouts_own_target_into_both_texts(run, group, tiny_tokenizer):
    trajectories, target = run("caopd", group(RIGHT, RIGHT, WRONG), leave_one_out=True)
    assert target.per_rollout == (0.5, 0.5, 1.0)
    for trajectory, value in zip(trajectories, ("0.50", "0.50", "1.00"), strict=True):
        assert text_of(tiny_tokenizer, trajectory).endswith(f"Confidence: {value}")
        assert trajectory.context.demo_text.endswith(f"Confidence: {value}")


def test_t20_p_hat_is_the_share_of_original_responses_that_were_right(run, group, tiny_tokenizer):
    """The revised texts are never verified: even where a revision would change a verdict, p-hat stays."""
    own = group(RIGHT, RIGHT, WRONG, WRONG)
    flipped = replace(
        own.rollouts[1], verdict=replace(own.rollouts[1].verdict, correct=False, reason="wrong")
    )
    own = replace(own, rollouts=(own.rollouts[0], flipped, *own.rollouts[2:]))
    before = [(r.text, r.token_ids, r.verdict) for r in own.rollouts]
    trajectories, target = run("caopd", own)
    assert target.p_hat == 0.25  # of the verdicts that came with the rollouts
    assert [text_of(tiny_tokenizer, t)[-4:] for t in trajectories[1:]] == ["0.25"] * 3
    assert [(r.text, r.token_ids, r.verdict) for r in own.rollouts] == before


def test_t19_kept_tokens_are_the_samples_and_masks_cover_the_new_segment(
    run, group, tiny_tokenizer, eot
):
    own = group(RIGHT, f" {RIGHT}\nConfidence: 0.3", WRONG)
    trajectories, _ = run("caopd", own)
    for trajectory, rollout in zip(trajectories, own.rollouts, strict=True):
        ids, n = trajectory.token_ids, trajectory.n_kept
        assert 0 < n < len(ids) and ids[:n] == rollout.token_ids[:n]
        assert ids[-1] == eot and ids.count(eot) == 1
        assert not any(trajectory.confidence_mask[:n]) and not trajectory.confidence_mask[-1]
        spelled = [i for i, m in zip(ids, trajectory.confidence_mask, strict=True) if m]
        assert tiny_tokenizer.decode(spelled).strip() == "Confidence: 0.67"
        number = [i for i, m in zip(ids, trajectory.value_mask, strict=True) if m]
        assert tiny_tokenizer.decode(number).strip() == "0.67"
        assert all(
            c for c, v in zip(trajectory.confidence_mask, trajectory.value_mask, strict=True) if v
        )
        assert all(trajectory.trained_mask) and trajectory.status == "replaced"


def test_t4_a_response_without_confidence_gets_one_and_is_counted(run, group, tiny_tokenizer):
    trajectories, _ = run("caopd", group(RIGHT, RIGHT, f"{WRONG}\n"))
    assert trajectories[2].status == "appended"
    assert text_of(tiny_tokenizer, trajectories[2]) == f"{WRONG}\nConfidence: 0.67"


# ---------------------------------------------------------------------- truncation (T5), limits


@pytest.mark.parametrize("method", ["sdpo", "caopd"])
def test_t5_a_truncated_rollout_is_masked_but_counts_in_p_hat(
    run, group, rollout, tiny_tokenizer, method
):
    cut = rollout("1" * 20, truncated=True)
    trajectories, target = run(method, group(RIGHT, RIGHT, cut, WRONG))
    assert target.p_hat == 0.5
    assert trajectories[2].status == "truncated" and not any(trajectories[2].trained_mask)
    assert trajectories[2].token_ids == cut.token_ids  # nothing was forced behind it
    assert all(any(trajectories[i].trained_mask) for i in (0, 1, 3))
    if method == "caopd":
        assert text_of(tiny_tokenizer, trajectories[0]).endswith("0.50")


def test_t5_truncated_rollouts_of_an_unsolved_group_are_masked_under_confidence_only(
    run, group, rollout
):
    cut = rollout("1" * 20, truncated=True)
    trajectories, _ = run("caopd", group(WRONG, cut), unsolved="confidence_only")
    assert [t.status for t in trajectories] == ["replaced", "truncated"]
    assert trajectories[0].confidence_only and not any(trajectories[1].trained_mask)


def test_a_response_too_long_for_the_new_segment_is_masked_and_counted(run, group):
    own = group(RIGHT, RIGHT, f"{WRONG * 6}\n")
    n = len(own.rollouts[2].token_ids)
    trajectories, _ = run("caopd", own, limit=n)
    assert trajectories[2].status == "unrevisable" and not any(trajectories[2].trained_mask)


# ---------------------------------------------------------------------- unsolved groups (T16)


@pytest.mark.parametrize(
    ("template", "header"),
    [("solution", "Correct solution:"), ("attempt", "Attempt:")],
    ids=["solution", "attempt"],
)
def test_t16_confidence_only_trains_just_the_confidence_tokens_towards_zero(
    run, group, tiny_tokenizer, template, header
):
    own = group(WRONG, f" {WRONG}\nConfidence: 1.00")
    trajectories, _ = run(
        "caopd", own, unsolved="confidence_only", context=ContextConfig(attempt_template=template)
    )
    for trajectory, rollout in zip(trajectories, own.rollouts, strict=True):
        assert trajectory.confidence_only and trajectory.trained_mask == trajectory.confidence_mask
        assert any(trajectory.trained_mask) and not trajectory.trained_mask[-1]
        assert text_of(tiny_tokenizer, trajectory).endswith("\nConfidence: 0.00")
        # the context is the rollout itself, so the stated number is all that may be learned from it
        assert trajectory.context.demo_text == revise_text(rollout.text, 0.0)
        assert f"\n\n{header}\n\n" in teacher_text(trajectory)


def test_t16_confidence_only_leaves_solved_groups_as_they_are(run, group):
    own = group(RIGHT, WRONG, WRONG)
    plain, _ = run("caopd", own)
    switched, _ = run("caopd", own, unsolved="confidence_only")
    for a, b in zip(plain, switched, strict=True):
        assert (a.token_ids, a.trained_mask, a.status, a.confidence_only) == (
            b.token_ids,
            b.trained_mask,
            b.status,
            b.confidence_only,
        )
    assert switched[0].status == "no_demonstration"


# ---------------------------------------------------------------------- prompts (T25, T28)


@pytest.mark.parametrize("method", ["sdpo", "caopd"])
def test_t28_student_teacher_and_evaluation_prompts_carry_the_same_instruction(
    run, group, tiny_tokenizer, method
):
    own = group(RIGHT, RIGHT, WRONG)
    trajectories, _ = run(method, own)
    student = tiny_tokenizer.decode(list(own.prompt_ids))
    evaluation = generate(n=1, seed=0, split="test")[0].messages[-1]["content"]
    assert student.count(CONFIDENCE_INSTRUCTION) == evaluation.count(CONFIDENCE_INSTRUCTION) == 1
    for trajectory in trajectories:
        messages = trajectory.context.build(trajectory.context.demo_text)
        assert [m["role"] for m in messages] == [m["role"] for m in EXAMPLE.messages]
        # the student's question stands unchanged at the beginning, the instruction in the same place, once
        assert messages[-1]["content"].startswith(EXAMPLE.messages[-1]["content"])
        assert messages[-1]["content"].count(CONFIDENCE_INSTRUCTION) == 1
        ids = encode_teacher_prompt(
            trajectory.context.build,
            trajectory.context.demo_text,
            tokenizer=tiny_tokenizer,
            max_tokens=128,
            overlong="error",
            template_kwargs={},
        )
        common = len(encode_prompt(EXAMPLE.messages, tokenizer=tiny_tokenizer, template_kwargs={}))
        header = tiny_tokenizer.encode(
            "<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
        )
        assert ids[-len(header) :] == header == list(own.prompt_ids[-len(header) :])
        assert ids[: common - len(header)] == list(own.prompt_ids[: common - len(header)])


@pytest.mark.parametrize("task", ["sciknoweval", "toolalpaca"])
def test_t28_the_files_prompts_carry_the_instruction_once_for_student_and_teacher(
    task, shared_rows
):
    from caopd_verl.core.context import build_sdpo_messages

    for example in shared_rows(task):
        for messages in (
            example.messages,
            build_sdpo_messages(example.messages, "B\nConfidence: 0.50"),
        ):
            assert "\n".join(m["content"] for m in messages).count(CONFIDENCE_INSTRUCTION) == 1
            assert messages[0]["content"].startswith(example.messages[0]["content"])


@pytest.fixture
def shared_rows():
    from pathlib import Path

    from caopd_verl.data import load_task

    rows = Path(__file__).parents[1] / "data" / "rows"
    paths = {"sciknoweval": rows / "sciknoweval.json", "toolalpaca": rows / "tooluse.json"}
    return lambda task: load_task(task, path=paths[task], seed=0, n=None, split="test")


def test_t27_a_demonstration_shows_no_thinking(run, group):
    trajectories, _ = run(
        "caopd",
        group(f"<think>\nConfidence: 0.1\n</think>\n{RIGHT}\nConfidence: 0.8", WRONG),
        limit=99,
    )
    assert trajectories[1].context.demo_text == f"{RIGHT}\nConfidence: 0.50"


def test_every_trajectory_states_a_readable_confidence_or_is_masked(
    run, group, rollout, tiny_tokenizer
):
    own = group(
        RIGHT,
        f"{RIGHT}\nConfidence: 7",
        f"{WRONG}\n<confidence>0.9</confidence>",
        rollout("12", truncated=True),
    )
    for trajectory in run("caopd", own)[0]:
        value = parse(text_of(tiny_tokenizer, trajectory)).value
        assert value == 0.5 if any(trajectory.trained_mask) else trajectory.status == "truncated"


def test_t5_a_response_that_ended_without_an_end_of_turn_is_masked_whatever_the_engine_calls_it(
    group, run, rollout
):
    """An aborted request has `truncated` False and no end-of-turn token."""
    cut = replace(rollout(f"{RIGHT}\nConfidence: 0.90", truncated=True), truncated=False)
    trajectories, _ = run("caopd", group(RIGHT, RIGHT, cut))
    assert [any(t.trained_mask) for t in trajectories] == [True, True, False]
    assert trajectories[-1].status == "truncated"
