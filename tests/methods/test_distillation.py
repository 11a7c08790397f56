"""Distillation on hand-made groups: which rows are trained, how, by whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from caopd_verl.config import (
    AttemptTemplate,
    CaopdConfig,
    ConfidenceLoss,
    ContextConfig,
    LossConfig,
    TargetConfig,
    TrainedRollouts,
    Truncated,
    Unsolved,
)
from caopd_verl.core.confidence import parse
from caopd_verl.core.context import encode_prompt, encode_teacher_prompt, teacher_messages
from caopd_verl.core.revise import revise_text
from caopd_verl.data import load_task
from caopd_verl.data.additions import generate
from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION
from caopd_verl.errors import ConfigError
from caopd_verl.methods import METHODS, check_method
from caopd_verl.methods.method import needs_teacher
from caopd_verl.types import CONFIDENCE_ROLES, Role, TeacherPrompt

from .conftest import (
    EXAMPLE,
    RIGHT,
    WRONG,
    confidence,
    ids_with,
    teacher_text,
    text_of,
    trained,
)

SIBLING_METHODS = ["sdpo", "sdpo_caopd"]


# ---------------------------------------------------------------------- who is trained


@pytest.mark.parametrize("method", SIBLING_METHODS)
def test_a_group_without_success_is_masked(run, group, method):
    trajectories, _ = run(method, group(WRONG, WRONG, WRONG))
    assert [t.status for t in trajectories] == ["unsolved"] * 3
    assert all(t.teacher_prompt is None and t.n_trained == 0 for t in trajectories)


@pytest.mark.parametrize("method", SIBLING_METHODS)
def test_the_only_success_is_masked_and_shown_to_the_others(run, group, rollout, method):
    own = rollout(f"{RIGHT}\nConfidence: 0.70")
    trajectories, _ = run(method, group(WRONG, own, WRONG))
    assert trajectories[1].status == "no_demonstration" and trajectories[1].n_trained == 0
    for index in (0, 2):
        assert all(trained(trajectories[index]))
        assert f"Correct solution:\n\n{RIGHT}\n" in teacher_text(trajectories[index])


@pytest.mark.parametrize("method", SIBLING_METHODS)
@pytest.mark.parametrize("n_right", [2, 4])
def test_nobody_is_shown_its_own_response(run, group, method, n_right):
    # each response is told apart by the blanks in front of its answer
    texts = [f"{' ' * i}{RIGHT if i < n_right else WRONG}\nConfidence: 0.9{i}" for i in range(4)]
    trajectories, _ = run(method, group(*texts))
    shown = [1, 0, 0, 0]  # the first success; for itself the second
    for trajectory, source in zip(trajectories, shown, strict=True):
        first_line = trajectory.teacher_prompt.demonstration.splitlines()[0]
        assert first_line == " " * source + RIGHT
        assert all(trained(trajectory)) and trajectory.counts_as == "row"


def test_sdpo_trains_what_was_sampled_and_shows_what_was_stated(run, group):
    own = group(RIGHT, f"{RIGHT}\nConfidence: 0.55", WRONG)
    trajectories, _ = run("sdpo", own)
    for trajectory, rollout in zip(trajectories, own.rollouts, strict=True):
        assert trajectory.token_ids == rollout.token_ids
        assert trajectory.n_sampled == len(rollout.token_ids)
        assert Role.CONFIDENCE_VALUE not in trajectory.roles  # nothing is asked of the number
        assert trajectory.spans[0].target is None
    assert trajectories[0].teacher_prompt.demonstration.endswith("Confidence: 0.55")
    assert trajectories[2].teacher_prompt.demonstration.endswith("Confidence: 0.90")


def test_sdpo_marks_the_stated_segment_for_the_log(run, group, tiny_tokenizer):
    own = group(RIGHT, RIGHT, f"{WRONG}\nno confidence here, none at all")
    trajectories, _ = run("sdpo", own)
    marked = ids_with(trajectories[0], *CONFIDENCE_ROLES)
    assert tiny_tokenizer.decode(marked).strip() == "Confidence: 0.90"
    assert not any(confidence(trajectories[2]))
    assert trajectories[2].spans == ()


# ---------------------------------------------------------------------- what caopd states


def test_demonstration_and_completion_state_the_same_p_hat(run, group, tiny_tokenizer):
    """A demonstration that kept its own confidence would leak the self-report."""
    texts = [
        f"{RIGHT}\nConfidence: 1.00",
        f"{WRONG}\n**Confidence:** 95%",
        RIGHT,
        f"{WRONG}\nConfidence: high",
    ]
    trajectories, target = run("sdpo_caopd", group(*texts))
    assert target.p_hat == 0.5
    for trajectory in trajectories:
        own = text_of(tiny_tokenizer, trajectory)
        assert own.endswith("\nConfidence: 0.50") and own.lower().count("confidence") == 1
        assert trajectory.teacher_prompt.demonstration == f"{RIGHT}\nConfidence: 0.50"
        shown = teacher_text(trajectory)
        assert shown.count("0.50") == 1
        assert not any(stated in shown for stated in ("1.00", "0.90", "95%"))


def test_a_demonstration_without_confidence_gets_one(run, group):
    trajectories, _ = run("sdpo_caopd", group(f"{RIGHT}\n", WRONG, WRONG, WRONG))
    assert trajectories[1].teacher_prompt.demonstration == f"{RIGHT}\nConfidence: 0.25"


def test_the_splice_of_the_demonstration_is_that_of_the_completion(run, group, tiny_tokenizer):
    text = f"{RIGHT}\n\n  *Confidence*: .9  \n"
    trajectories, target = run("sdpo_caopd", group(text, text, WRONG))
    assert text_of(tiny_tokenizer, trajectories[0]) == revise_text(text, target.p_hat)
    assert trajectories[2].teacher_prompt.demonstration == revise_text(text, target.p_hat)


def test_leave_one_out_writes_each_rollouts_own_target_into_both_texts(run, group, tiny_tokenizer):
    own = group(RIGHT, RIGHT, WRONG)
    trajectories, target = run("sdpo_caopd", own, target=TargetConfig(leave_one_out=True))
    assert target.per_rollout == (0.5, 0.5, 1.0)
    for trajectory, value in zip(trajectories, ("0.50", "0.50", "1.00"), strict=True):
        assert text_of(tiny_tokenizer, trajectory).endswith(f"Confidence: {value}")
        assert trajectory.teacher_prompt.demonstration.endswith(f"Confidence: {value}")
        assert trajectory.spans[0].target == float(value)


def test_p_hat_is_the_share_of_original_responses_that_were_right(run, group, tiny_tokenizer):
    """The revised texts are never verified: p-hat is that of the verdicts as they came."""
    own = group(RIGHT, RIGHT, WRONG, WRONG)
    wrong = replace(own.rollouts[1].verdict, correct=False, reason="wrong")
    flipped = replace(own.rollouts[1], verdict=wrong)
    own = replace(own, rollouts=(own.rollouts[0], flipped, *own.rollouts[2:]))
    before = [(r.text, r.token_ids, r.verdict) for r in own.rollouts]
    trajectories, target = run("sdpo_caopd", own)
    assert target.p_hat == 0.25
    assert [text_of(tiny_tokenizer, t)[-4:] for t in trajectories[1:]] == ["0.25"] * 3
    assert [(r.text, r.token_ids, r.verdict) for r in own.rollouts] == before


def test_kept_tokens_are_the_samples_and_roles_cover_the_new_segment(
    run, group, tiny_tokenizer, eot
):
    """The sampler's log-probs hold for sampled tokens in their sampled context alone."""
    own = group(RIGHT, f" {RIGHT}\nConfidence: 0.3", WRONG)
    trajectories, _ = run("sdpo_caopd", own)
    for trajectory, rollout in zip(trajectories, own.rollouts, strict=True):
        ids, n = trajectory.token_ids, trajectory.n_sampled
        assert 0 < n < len(ids) and ids[:n] == rollout.token_ids[:n]
        assert ids[-1] == eot and ids.count(eot) == 1
        assert trajectory.roles[-1] == Role.END_OF_TURN
        assert not any(confidence(trajectory)[:n])
        spelled = ids_with(trajectory, *CONFIDENCE_ROLES)
        assert tiny_tokenizer.decode(spelled).strip() == "Confidence: 0.67"
        number = ids_with(trajectory, Role.CONFIDENCE_VALUE)
        assert tiny_tokenizer.decode(number).strip() == "0.67"
        assert all(trained(trajectory)) and trajectory.status == "replaced"
        (span,) = trajectory.spans
        assert span.target == pytest.approx(2 / 3)
        assert [span.start <= i < span.stop for i in range(len(ids))] == confidence(trajectory)


def test_confidence_tokens_may_have_a_divergence_of_their_own(run, group):
    loss = LossConfig(alpha=1.0, confidence_alpha=0.0)
    trajectories, _ = run("sdpo_caopd", group(RIGHT, RIGHT), loss=loss)
    for trajectory in trajectories:
        expected = [0.0 if inside else 1.0 for inside in confidence(trajectory)]
        assert list(trajectory.alphas) == expected


def test_a_response_without_confidence_gets_one_and_is_counted(run, group, tiny_tokenizer):
    trajectories, _ = run("sdpo_caopd", group(RIGHT, RIGHT, f"{WRONG}\n"))
    assert trajectories[2].status == "appended"
    assert text_of(tiny_tokenizer, trajectories[2]) == f"{WRONG}\nConfidence: 0.67"


def test_every_trajectory_states_a_readable_confidence_or_is_masked(
    run, group, rollout, tiny_tokenizer
):
    own = group(
        RIGHT,
        f"{RIGHT}\nConfidence: 7",
        f"{WRONG}\n<confidence>0.9</confidence>",
        rollout("12", truncated=True),
    )
    for trajectory in run("sdpo_caopd", own)[0]:
        value = parse(text_of(tiny_tokenizer, trajectory)).value
        assert value == 0.5 if trajectory.n_trained else trajectory.status == "truncated"


# ---------------------------------------------------------------------- truncation, limits


@pytest.mark.parametrize("method", SIBLING_METHODS)
def test_a_truncated_rollout_is_masked_but_counts_in_p_hat(run, group, rollout, method):
    """Trained with a forced ending it would learn to stop and state p-hat after half an answer."""
    cut = rollout("1" * 20, truncated=True)
    trajectories, target = run(method, group(RIGHT, RIGHT, cut, WRONG))
    assert target.p_hat == 0.5
    assert trajectories[2].status == "truncated" and trajectories[2].n_trained == 0
    assert trajectories[2].token_ids == cut.token_ids  # nothing was forced behind it
    assert all(trajectories[index].n_trained for index in (0, 1, 3))


@pytest.mark.parametrize("method", SIBLING_METHODS)
def test_an_aborted_response_is_masked_like_a_truncated_one(group, run, rollout, method):
    """An aborted request has no end-of-turn token, whatever the engine calls it."""
    aborted = replace(rollout(f"{RIGHT}\nConfidence: 0.90", truncated=True), truncated=False)
    trajectories, _ = run(method, group(RIGHT, RIGHT, aborted))
    assert [t.n_trained > 0 for t in trajectories] == [True, True, False]
    assert trajectories[-1].status == "truncated"


@pytest.mark.parametrize("method", SIBLING_METHODS)
def test_truncation_is_counted_before_a_missing_demonstration(group, run, rollout, method):
    """Both arms count alike, so that their shares of truncated rows can be compared."""
    cut = rollout("1" * 20, truncated=True)
    trajectories, _ = run(method, group(WRONG, cut))
    assert [t.status for t in trajectories] == ["unsolved", "truncated"]


@pytest.mark.parametrize("method", SIBLING_METHODS)
def test_truncated_rollouts_are_trained_where_asked(group, run, rollout, method):
    cut = rollout("1" * 20, truncated=True)
    trajectories, _ = run(method, group(RIGHT, RIGHT, cut), truncated=Truncated.train)
    assert all(trained(trajectories[2])) and trajectories[2].token_ids == cut.token_ids


def test_truncated_rollouts_of_an_unsolved_group_stay_masked(run, group, rollout):
    cut = rollout("1" * 20, truncated=True)
    own = group(WRONG, cut)
    trajectories, _ = run("sdpo_caopd", own, unsolved=Unsolved.confidence_only)
    assert [t.status for t in trajectories] == ["replaced", "truncated"]
    assert trajectories[0].counts_as == "tokens" and trajectories[1].n_trained == 0


def test_a_response_too_long_for_the_new_segment_is_masked_and_counted(run, group):
    own = group(RIGHT, RIGHT, f"{WRONG * 6}\n")
    n = len(own.rollouts[2].token_ids)
    trajectories, _ = run("sdpo_caopd", own, limit=n)
    assert trajectories[2].status == "unrevisable" and trajectories[2].n_trained == 0


# ---------------------------------------------------------------------- unsolved groups


@pytest.mark.parametrize(
    ("template", "header"),
    [(AttemptTemplate.solution, "Correct solution:"), (AttemptTemplate.attempt, "Attempt:")],
)
def test_unsolved_groups_can_train_just_their_confidence_towards_zero(
    run, group, tiny_tokenizer, template, header
):
    own = group(WRONG, f" {WRONG}\nConfidence: 1.00")
    trajectories, _ = run(
        "sdpo_caopd",
        own,
        unsolved=Unsolved.confidence_only,
        context=ContextConfig(attempt_template=template),
    )
    for trajectory, rollout in zip(trajectories, own.rollouts, strict=True):
        assert trajectory.counts_as == "tokens"
        assert trained(trajectory) == confidence(trajectory) and any(trained(trajectory))
        assert text_of(tiny_tokenizer, trajectory).endswith("\nConfidence: 0.00")
        # the context is the rollout itself, so the stated number is all there is to learn from it
        assert trajectory.teacher_prompt.demonstration == revise_text(rollout.text, 0.0)
        assert f"\n\n{header}\n\n" in teacher_text(trajectory)


def test_that_switch_leaves_solved_groups_as_they_are(run, group):
    own = group(RIGHT, WRONG, WRONG)
    plain, _ = run("sdpo_caopd", own)
    switched, _ = run("sdpo_caopd", own, unsolved=Unsolved.confidence_only)
    assert plain == switched
    assert switched[0].status == "no_demonstration"


# ---------------------------------------------------------------------- prompts


@pytest.mark.parametrize("method", SIBLING_METHODS)
def test_student_teacher_and_evaluation_prompts_carry_the_same_instruction(
    run, group, tiny_tokenizer, method
):
    own = group(RIGHT, RIGHT, WRONG)
    trajectories, _ = run(method, own)
    student = tiny_tokenizer.decode(list(own.prompt_ids))
    evaluation = generate(n=1, seed=0, split="test")[0].messages[-1]["content"]
    assert student.count(CONFIDENCE_INSTRUCTION) == evaluation.count(CONFIDENCE_INSTRUCTION) == 1
    plain = encode_prompt(EXAMPLE.messages, tokenizer=tiny_tokenizer, template_kwargs={})
    header = tiny_tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    question = len(plain) - len(header)
    for trajectory in trajectories:
        messages = teacher_messages(trajectory.teacher_prompt)
        assert [m["role"] for m in messages] == [m["role"] for m in EXAMPLE.messages]
        # the student's question stands unchanged at the beginning, with its instruction, once
        assert messages[-1]["content"].startswith(EXAMPLE.messages[-1]["content"])
        assert messages[-1]["content"].count(CONFIDENCE_INSTRUCTION) == 1
        ids = encode_teacher_prompt(
            trajectory.teacher_prompt,
            tokenizer=tiny_tokenizer,
            max_tokens=128,
            shorten=False,
            template_kwargs={},
        )
        assert ids[-len(header) :] == header == list(own.prompt_ids[-len(header) :])
        assert ids[:question] == list(own.prompt_ids[:question])


@pytest.mark.parametrize(
    ("task", "file"), [("sciknoweval", "sciknoweval.json"), ("toolalpaca", "tooluse.json")]
)
def test_the_files_prompts_carry_the_instruction_once_for_student_and_teacher(task, file):
    path = Path(__file__).parents[1] / "data" / "rows" / file
    for example in load_task(task, path=path, seed=0, n=None, split="test"):
        prompt = TeacherPrompt(example.messages, "B\nConfidence: 0.50", "solution")
        for messages in (example.messages, teacher_messages(prompt)):
            text = "\n".join(message["content"] for message in messages)
            assert text.count(CONFIDENCE_INSTRUCTION) == 1
            assert messages[0]["content"].startswith(example.messages[0]["content"])


def test_a_demonstration_shows_no_thinking(run, group):
    thought = f"<think>\nConfidence: 0.1\n</think>\n{RIGHT}\nConfidence: 0.8"
    trajectories, _ = run("sdpo_caopd", group(thought, WRONG), limit=99)
    assert trajectories[1].teacher_prompt.demonstration == f"{RIGHT}\nConfidence: 0.50"


# ---------------------------------------------------------------------- what the config may say


def check(method, k, **config):
    return check_method(CaopdConfig(method=method, **config), k)


@pytest.mark.parametrize(
    ("method", "k", "config", "key"),
    [
        ("caopd", 8, {}, "caopd.method"),
        ("sdpo", 0, {}, "actor_rollout_ref.rollout.n"),
        ("sdpo", 1, {}, "actor_rollout_ref.rollout.n"),
        ("sdpo_caopd", 1, {}, "actor_rollout_ref.rollout.n"),
        ("sdpo", 8, {"unsolved": Unsolved.confidence_only}, "caopd.unsolved"),
        ("sdpo", 8, {"confidence_loss": ConfidenceLoss.cross_entropy}, "caopd.confidence_loss"),
        ("sdpo", 8, {"trained_rollouts": TrainedRollouts.one}, "caopd.trained_rollouts"),
        (
            "sdpo_caopd",
            1,
            {
                "unsolved": Unsolved.confidence_only,
                "target": TargetConfig(leave_one_out=True),
            },
            "caopd.target.leave_one_out",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_key(method, k, config, key):
    with pytest.raises(ConfigError) as caught:
        check(method, k, **config)
    assert caught.value.where == key and caught.value.expected


def test_one_rollout_is_enough_where_unsolved_groups_are_trained():
    assert check("sdpo_caopd", 1, unsolved=Unsolved.confidence_only) is METHODS["sdpo_caopd"]


# ---------------------------------------------------------------------- a loss for the number


def test_with_cross_entropy_the_number_leaves_the_divergence(run, group):
    config = CaopdConfig(confidence_loss=ConfidenceLoss.cross_entropy)
    divergence, cross_entropy = METHODS["sdpo_caopd"].loss_terms(config)
    assert divergence.roles | cross_entropy.roles == frozenset(Role)
    assert divergence.roles & cross_entropy.roles == frozenset()
    assert needs_teacher(METHODS["sdpo_caopd"], config)
    own = group(RIGHT, RIGHT, WRONG)
    plain, _ = run("sdpo_caopd", own)
    switched, _ = run("sdpo_caopd", own, confidence_loss=ConfidenceLoss.cross_entropy)
    assert plain == switched  # the sequences are the same, only their loss differs


def test_with_cross_entropy_unsolved_groups_need_no_teacher(run, group):
    trajectories, _ = run(
        "sdpo_caopd",
        group(WRONG, WRONG),
        unsolved=Unsolved.confidence_only,
        confidence_loss=ConfidenceLoss.cross_entropy,
    )
    for trajectory in trajectories:
        assert trajectory.teacher_prompt is None and trajectory.counts_as == "tokens"
        number = [role == Role.CONFIDENCE_VALUE for role in trajectory.roles]
        assert trained(trajectory) == number


# ---------------------------------------------------------------------- gold demonstrations


def test_sdft_samples_one_rollout_and_shows_the_gold_solution(run, group):
    plan = METHODS["sdft"].plan(CaopdConfig(method="sdft"), 8)
    assert (plan.n, plan.trained) == (1, 1)
    own = group(f"{WRONG}\nConfidence: 0.80")
    (trajectory,), _ = run("sdft", own)
    assert trajectory.token_ids == own.rollouts[0].token_ids and all(trained(trajectory))
    assert trajectory.teacher_prompt.demonstration == RIGHT
    assert "This is an example for a response to the question:" in teacher_text(trajectory)


def test_a_rows_own_demonstration_goes_before_the_rendered_gold_answer(run, group):
    example = replace(EXAMPLE, demonstration=f"we carry\n{RIGHT}")
    (trajectory,), _ = run("sdft", group(WRONG, example=example))
    assert trajectory.teacher_prompt.demonstration == f"we carry\n{RIGHT}"


def test_sdft_caopd_trains_one_rollout_on_the_success_rate_of_k_others(run, group, tiny_tokenizer):
    config = CaopdConfig(method="sdft_caopd")
    plan = METHODS["sdft_caopd"].plan(config, 4)
    assert (plan.n, plan.trained, plan.judged_from) == (5, 1, 1)
    own = group(WRONG, RIGHT, RIGHT, RIGHT, WRONG)
    trajectories, target = run("sdft_caopd", own, k=4)
    assert len(trajectories) == 1 and (target.k, target.p_hat) == (4, 0.75)
    (trajectory,) = trajectories
    assert text_of(tiny_tokenizer, trajectory) == f"{WRONG}\nConfidence: 0.75"
    assert trajectory.teacher_prompt.demonstration == f"{RIGHT}\nConfidence: 0.75"
    assert trajectory.spans[0].target == 0.75


def test_or_all_k_rollouts_each_judged_and_trained(run, group, tiny_tokenizer):
    own = group(WRONG, RIGHT, RIGHT, WRONG)
    trajectories, target = run("sdft_caopd", own, trained_rollouts=TrainedRollouts.all)
    assert target.p_hat == 0.5 and len(trajectories) == 4
    for trajectory in trajectories:
        assert text_of(tiny_tokenizer, trajectory).endswith("Confidence: 0.50")
        assert all(trained(trajectory))


def test_with_a_gold_demonstration_a_group_without_success_is_trained(run, group):
    own = group(WRONG, WRONG, WRONG)
    trajectories, target = run("sdft_caopd", own, trained_rollouts=TrainedRollouts.all)
    assert target.p_hat == 0.0 and all(all(trained(t)) for t in trajectories)
    assert trajectories[0].teacher_prompt.demonstration == f"{RIGHT}\nConfidence: 0.00"


@pytest.mark.parametrize("method", ["sdft", "sdft_caopd"])
def test_one_rollout_a_prompt_is_enough_for_sdft(method):
    assert check(method, 1) is METHODS[method]
    with pytest.raises(ConfigError) as caught:
        check(method, 8, unsolved=Unsolved.confidence_only)
    assert caught.value.where == "caopd.unsolved"
