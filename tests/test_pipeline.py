"""From verified groups to weighted rows: the order of a step, without any framework."""

from __future__ import annotations

import pytest

from caopd_verl import pipeline
from caopd_verl.config import (
    CaopdConfig,
    ContextConfig,
    EmptyBatch,
    Overlong,
    TargetConfig,
    TargetRule,
)
from caopd_verl.core.targets import RunningEstimate
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.errors import TeacherContextError
from caopd_verl.methods import METHODS
from tests.groups import make_group
from tests.services import FakeServices


@pytest.fixture
def rows_of(tiny_tokenizer):
    """Targets and rows of groups, as the trainer makes them."""

    def make(groups, **config):
        caopd = CaopdConfig(**{"context": ContextConfig(max_tokens=128), **config})
        method = METHODS[caopd.method]
        plan = method.plan(caopd, len(groups[0].rollouts))
        targets = pipeline.targets_of(groups, plan, pipeline.target_rule(caopd))
        services = FakeServices(caopd, tiny_tokenizer, find_eot_id(tiny_tokenizer))
        trajectories = pipeline.trajectories_of(groups, targets, method, services)
        rows = pipeline.update_rows(
            trajectories, tokenizer=tiny_tokenizer, config=caopd, template_kwargs={}
        )
        return targets, rows

    return make


def test_everything_after_the_revision_is_built_from_the_revised_ids(rows_of, tiny_tokenizer):
    group = make_group(tiny_tokenizer, 0, [True, True, False, False])
    _, rows = rows_of([group])
    for rollout, row in zip(group.rollouts, rows, strict=True):
        text = tiny_tokenizer.decode(list(row.trajectory.token_ids))
        shown = tiny_tokenizer.decode(row.teacher_prompt_ids)
        assert text.endswith("Confidence: 0.50<|im_end|>") and rollout.text.endswith("0.90")
        assert shown.count("Confidence: 0.50") == 1 and "0.90" not in shown


def test_groups_with_the_same_question_stay_apart(rows_of, tiny_tokenizer):
    """The same prompt twice in a batch: two groups by uid, each with its own p-hat."""
    first = make_group(tiny_tokenizer, 0, [True, True])
    second = make_group(tiny_tokenizer, 0, [False, True], uid="1-1")
    targets, rows = rows_of([first, second])
    assert [target.p_hat for target in targets] == [1.0, 0.5]
    assert [row.trajectory.uid for row in rows] == ["1-0", "1-0", "1-1", "1-1"]


def test_a_prompt_that_several_rows_share_is_encoded_once(rows_of, tiny_tokenizer, monkeypatch):
    calls = []
    encode = pipeline.encode_teacher_prompt

    def counting(prompt, **options):
        calls.append(prompt)
        return encode(prompt, **options)

    monkeypatch.setattr(pipeline, "encode_teacher_prompt", counting)
    _, rows = rows_of([make_group(tiny_tokenizer, 0, [True] * 6)])
    # the first success demonstrates for five rows, the second one for the first; both texts agree
    assert len(calls) == 1 and len({tuple(row.teacher_prompt_ids) for row in rows}) == 1


def test_an_over_long_teacher_prompt_is_an_error(rows_of, tiny_tokenizer):
    context = ContextConfig(max_tokens=20, overlong=Overlong.error)
    with pytest.raises(TeacherContextError, match="a teacher prompt has"):
        rows_of([make_group(tiny_tokenizer, 0, [True, True])], context=context)


def test_or_a_masked_row_that_is_counted_where_not_even_its_end_fits(rows_of, tiny_tokenizer):
    context = ContextConfig(max_tokens=20, overlong=Overlong.shorten_demo)
    _, rows = rows_of([make_group(tiny_tokenizer, 0, [True, True])], context=context)
    for row in rows:
        assert row.trajectory.status == pipeline.TEACHER_OVERLONG
        assert row.trajectory.n_trained == 0 and row.teacher_prompt_ids is None


def test_token_weights_are_those_of_the_rows_in_their_own_lengths(rows_of, tiny_tokenizer):
    groups = [
        make_group(tiny_tokenizer, 0, [True, True, False]),
        make_group(tiny_tokenizer, 1, [False] * 3),
    ]
    _, rows = rows_of(groups)
    trajectories = [row.trajectory for row in rows]
    weights = pipeline.token_weights(trajectories, CaopdConfig())
    assert [len(own) for own in weights] == [len(t.token_ids) for t in trajectories]
    sums = [float(own.sum()) for own in weights]
    assert sums == pytest.approx([1 / 3] * 3 + [0.0] * 3)


def test_an_empty_step_is_an_error_that_names_the_key():
    with pytest.raises(TeacherContextError, match="step 3: no group has a teacher") as caught:
        pipeline.report_empty_step(3, CaopdConfig())
    assert caught.value.where == "caopd.empty_batch"
    assert "caopd.empty_batch=skip" in str(caught.value)


def test_or_is_said_aloud_where_it_may_be_skipped(capsys):
    pipeline.report_empty_step(3, CaopdConfig(empty_batch=EmptyBatch.skip))
    assert "step 3: no group has a teacher" in capsys.readouterr().out


def test_the_target_rule_is_the_one_that_the_config_names():
    config = CaopdConfig(target=TargetConfig(rule=TargetRule.running, momentum=0.25))
    rule = pipeline.target_rule(config)
    assert isinstance(rule, RunningEstimate) and rule.momentum == 0.25
    shrunk = pipeline.target_rule(CaopdConfig(target=TargetConfig(shrinkage=[1.0, 1.0])))
    assert shrunk.target("q", [True, True]).p_hat == 0.75
