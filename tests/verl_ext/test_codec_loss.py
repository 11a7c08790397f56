"""Rows to tensors and the loss that verl calls, against a plain per-row computation; one process, no Ray."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from caopd_verl.config import CaopdConfig, LossConfig
from caopd_verl.core.divergence import reference_divergence
from caopd_verl.errors import TeacherContextError
from caopd_verl.methods.base import TeacherContext, Trajectory, masked

V, EOS = 24, 2
CONTEXT = TeacherContext(lambda demo: [{"role": "user", "content": demo}], "demo")


@pytest.fixture(autouse=True)
def _verl(verl_on_cpu):
    torch.manual_seed(0)


def make_row(index, *, n_prompt=3, n_response=6, n_confidence=2, kind="full", ids=None):
    """A row of made-up tokens: `full`, `confidence_only`, `masked`, or `overlong` (its teacher prompt did not fit)."""
    from caopd_verl.verl_ext.codec import Row

    generator = torch.Generator().manual_seed(index)
    draw = lambda n: torch.randint(3, V, (n,), generator=generator).tolist()  # noqa: E731
    prompt, response = draw(n_prompt), ids or [*draw(n_response - 1), EOS]
    n = len(response)
    log_probs = tuple((-3 * torch.rand(n, generator=generator)).tolist())
    confidence = tuple(n - 1 - n_confidence <= i < n - 1 for i in range(n))
    trajectory = Trajectory(
        token_ids=tuple(response),
        trained_mask=confidence if kind == "confidence_only" else (True,) * n,
        confidence_mask=confidence,
        value_mask=tuple(i == n - 2 for i in range(n)),
        n_kept=n - 1 - n_confidence,
        context=CONTEXT,
        status="replaced",
        confidence_only=kind == "confidence_only",
    )
    if kind == "masked":
        trajectory = masked(tuple(response), "unsolved")
    teacher = None if kind in ("masked", "overlong") else [*prompt, *draw(4)]
    return Row(f"1-{index}_0_0", prompt, trajectory, teacher, log_probs)


def mixed_rows():
    return [
        make_row(0, n_prompt=2, n_response=7),
        make_row(1, kind="masked", n_response=9),
        make_row(2, kind="confidence_only", n_prompt=5, n_response=8),
        make_row(3, n_prompt=1, n_response=4, n_confidence=1),
        make_row(4, kind="overlong"),
        make_row(5, n_prompt=4, n_response=5),
    ]


# ---------------------------------------------------------------------- codec


def encode(rows, **loss):
    from caopd_verl.verl_ext import codec

    return codec.encode(rows, codec.loss_weights(rows, LossConfig(**loss)))


def test_t21_every_mask_comes_from_lengths_so_a_pad_id_equal_to_eos_changes_nothing():
    """Prompt and response are full of the end-of-turn id, which may be the pad id, and of id 0."""
    row = make_row(0, ids=[EOS, 5, 0, 0, EOS, EOS])
    batch = encode([row, make_row(1, n_response=3, n_confidence=1)])
    assert batch["responses"].offsets().tolist() == [0, 6, 9]
    assert batch["response_mask"].values().tolist() == [1] * 9 == batch["loss_mask"].values().tolist()
    assert batch["responses"].values()[:6].tolist() == [EOS, 5, 0, 0, EOS, EOS]
    assert (batch["loss_weight"].values() > 0).all()
    assert batch["input_ids"].values()[:9].tolist() == [*row.prompt_ids, *row.trajectory.token_ids]
    assert batch["position_ids"].values().tolist() == [*range(9), *range(6)]


def test_fields_of_a_trained_row():
    row = make_row(0, n_prompt=2, n_response=7)
    batch = encode([row])
    n_kept = row.trajectory.n_kept
    assert batch["teacher_input_ids"].values().tolist() == [*row.teacher_prompt_ids, *row.trajectory.token_ids]
    assert batch["confidence_mask"].values().tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert batch["value_mask"].values().tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert batch["kept_mask"].values().tolist() == [1, 1, 1, 1, 0, 0, 0]
    expected = [*row.rollout_log_probs[:n_kept], *([0.0] * (7 - n_kept))]
    assert batch["rollout_log_probs"].values().tolist() == pytest.approx(expected)
    assert {name: t.dtype for name, t in batch.items() if t.is_floating_point()} == {
        "loss_weight": torch.float32,
        "rollout_log_probs": torch.float32,
    }


@pytest.mark.parametrize("kind", ["masked", "overlong"])
def test_rows_without_teacher_shrink_to_two_tokens_of_weight_zero(kind):
    row = make_row(0, kind=kind, n_prompt=4, n_response=9)
    batch = encode([make_row(1), row])
    for field in ("input_ids", "teacher_input_ids"):
        assert batch[field].unbind()[1].tolist() == [row.prompt_ids[-1], row.trajectory.token_ids[0]]
    assert batch["loss_weight"].unbind()[1].tolist() == [0.0]
    assert all(len(batch[field].unbind()[1]) == 1 for field in ("responses", "kept_mask", "rollout_log_probs"))


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_weights_sum_to_one_and_are_zero_where_nothing_is_trained(average):
    rows = mixed_rows()
    batch = encode(rows, average=average)
    assert float(batch["loss_weight"].values().double().sum()) == pytest.approx(1.0, abs=1e-6)
    for row, weight in zip(rows, batch["loss_weight"].unbind(), strict=True):
        trained = row.trajectory.trained_mask if row.n_trained else (False,)
        assert [w > 0 for w in weight.tolist()] == list(trained)


def test_t23_masked_rows_dilute_the_loss_only_where_asked():
    rows = [make_row(0), make_row(1, kind="masked")]
    assert float(encode(rows, normalize_by="trained")["loss_weight"].values().sum()) == pytest.approx(1.0)
    assert float(encode(rows, normalize_by="all")["loss_weight"].values().sum()) == pytest.approx(0.5)


def test_t16_a_few_confidence_tokens_never_outweigh_whole_responses():
    rows = [make_row(0, n_response=20), make_row(1, n_response=20, kind="confidence_only")]
    full, only = (float(w.sum()) for w in encode(rows)["loss_weight"].unbind())
    assert only / full == pytest.approx(2 / 20)


def test_a_batch_without_a_teacher_is_an_error():
    from caopd_verl.verl_ext import codec

    with pytest.raises(TeacherContextError, match="no token to train on"):
        codec.loss_weights([make_row(0, kind="masked"), make_row(1, kind="overlong")], LossConfig())


def test_a_replayed_row_without_sampler_log_probs_counts_as_not_kept():
    batch = encode([replace(make_row(0), rollout_log_probs=())])
    assert not batch["kept_mask"].values().any()


# ---------------------------------------------------------------------- positions


def test_response_positions_against_a_loop():
    from caopd_verl.verl_ext.engine import response_positions

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        n_rows = int(torch.randint(1, 6, (1,), generator=generator))
        prompts = torch.randint(1, 7, (n_rows,), generator=generator)
        responses = torch.randint(1, 7, (n_rows,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (prompts + responses).cumsum(0)])
        expected = [
            int(offsets[row]) + int(prompts[row]) + token - 1  # the logits before a token predict it
            for row in range(n_rows)
            for token in range(int(responses[row]))
        ]
        assert response_positions(offsets, responses).tolist() == expected


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padded_teacher_logits_are_those_of_each_row_alone(temperature):
    """Rows of different length in one padded forward pass of the tiny model, against one pass a row."""
    from transformers import AutoModelForCausalLM
    from verl.utils import tensordict_utils as tu

    from caopd_verl.preflight import resolve_model_path
    from caopd_verl.verl_ext.engine import CaopdEngine

    model = AutoModelForCausalLM.from_pretrained(resolve_model_path("embedded:tiny_arith"), dtype=torch.float32).eval()
    engine = object.__new__(CaopdEngine)
    engine.module, engine.pad_to_length, engine._autocast_dtype = model, None, torch.float32
    rows = [make_row(0, n_prompt=9, n_response=4), make_row(1, n_prompt=1, n_response=8), make_row(2)]
    batch = encode(rows)
    tu.assign_non_tensor(batch, use_remove_padding=False, temperature=temperature)
    found = engine.response_logits(batch["teacher_input_ids"], batch["responses"].offsets().diff(), batch)
    alone = []
    for ids, response in zip(batch["teacher_input_ids"].unbind(), batch["responses"].unbind(), strict=True):
        with torch.no_grad():
            alone.append(model(ids.unsqueeze(0)).logits[0, -len(response) - 1 : -1] / temperature)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert not found.requires_grad


# ---------------------------------------------------------------------- loss


class TableTeacher:
    """Stands in for the teacher's engine: the next token's logits are a row of a table, chosen by the last token."""

    def __init__(self, table):
        self.table = table

    def response_logits(self, input_ids, response_lengths, data):
        from caopd_verl.verl_ext.engine import response_positions

        return self.table[input_ids.values()[response_positions(input_ids.offsets(), response_lengths)]]


@pytest.fixture
def tables():
    """Logits (V, V) of student and teacher."""
    return torch.randn(V, V, requires_grad=True), torch.randn(V, V)


def loss_of(config, tables, rows, weights=None, *, dp_size=1, n_mini_batches=1, old=None):
    """What verl does with one micro-batch: per-token values, unpacked to the rows, and their sum."""
    from verl.utils import tensordict_utils as tu

    from caopd_verl.verl_ext import codec
    from caopd_verl.verl_ext.loss import N_MINI_BATCHES, CaopdLoss

    student, teacher = tables
    data = codec.encode(rows, codec.loss_weights(rows, config.loss) if weights is None else weights)
    if old is not None:
        data["old_log_probs"] = torch.nested.nested_tensor_from_jagged(old, data["responses"].offsets())
    tu.assign_non_tensor(data, dp_size=dp_size, **{N_MINI_BATCHES: n_mini_batches})
    loss = CaopdLoss(config, TableTeacher(teacher))
    values = loss(student_logits=student[data["input_ids"].values()].unsqueeze(0), data=data)
    assert all(v.shape == (1, len(data["input_ids"].values())) for v in values.values())
    offsets = data["input_ids"].offsets()
    unpacked = {k: torch.nested.nested_tensor_from_jagged(v.squeeze(0), offsets) for k, v in values.items()}
    return loss(model_output=unpacked, data=data)


def dense(config, tables, rows, *, old=None):
    """The same loss token by token, in fp64 and without packing, from the definition; full vocabulary."""
    student, teacher = (t.double() for t in tables)
    trained = [row for row in rows if row.n_trained]
    full = [row for row in trained if not row.trajectory.confidence_only]
    if config.loss.average == "token":
        share = dict.fromkeys((row.key for row in trained), 1 / sum(row.n_trained for row in trained))
    else:
        mean = sum(row.n_trained for row in full) / len(full)
        sizes = {row.key: row.n_trained if row in full else mean for row in trained}
        denominator = sum(row.n_trained / sizes[row.key] for row in trained)
        share = {key: 1 / size / denominator for key, size in sizes.items()}
    total, position = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        ids = row.trajectory.token_ids if row.n_trained else row.trajectory.token_ids[:1]
        previous = [row.prompt_ids[-1], *ids]
        shown = [(row.teacher_prompt_ids or (0,))[-1], *ids]  # the teacher has a prompt of its own
        for i, token in enumerate(ids):
            position += 1
            if not (row.n_trained and row.trajectory.trained_mask[i]):
                continue
            logits_s, logits_t = student[previous[i]], teacher[shown[i]]
            alpha = config.confidence_alpha if row.trajectory.confidence_mask[i] else config.loss.alpha
            d = reference_divergence(logits_s[None], logits_t[None], alpha_T=torch.tensor([alpha]), temperature=1.0)[0]
            now = float(logits_s.log_softmax(-1)[token])
            before = now if old is None else float(old[position - 1])
            weight = min(math.exp(now - before), config.loss.is_clip)
            if i < row.trajectory.n_kept and config.loss.tis_clip is not None:
                weight *= min(math.exp(before - row.rollout_log_probs[i]), config.loss.tis_clip)
            total = total + share[row.key] * weight * d
    return total


def gradient(loss, table):
    return torch.autograd.grad(loss, table)[0]


SETTINGS = {
    "paper": {},
    "proper": {"confidence_alpha": 0.0, "average": "token"},
    "jsd": {"alpha": 0.5, "tis_clip": None},
    "tight clips": {"is_clip": 0.9, "tis_clip": 1.1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("with_old", [False, True], ids=["one mini-batch", "old log-probs"])
def test_loss_and_gradient_are_those_of_the_definition(tables, name, with_old):
    config = CaopdConfig(loss=LossConfig(**{"top_k": None, "chunk_tokens": 5, **SETTINGS[name]}))
    rows = mixed_rows()
    n = sum(len(r.trajectory.token_ids) if r.n_trained else 1 for r in rows)
    old = -4 * torch.rand(n) if with_old else None
    found, _ = loss_of(config, tables, rows, old=old)
    expected = dense(config, tables, rows, old=old)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient(found, tables[0]), gradient(expected, tables[0]).float(), rtol=1e-4, atol=1e-6)


def test_k_of_the_whole_vocabulary_equals_null(tables):
    rows = mixed_rows()
    losses = [float(loss_of(CaopdConfig(loss=LossConfig(top_k=k)), tables, rows)[0].detach()) for k in (None, V)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_gradient_is_exactly_zero_where_nothing_is_trained(tables):
    """Tokens that stand only before untrained tokens get no gradient at all."""
    rows = [make_row(0, kind="confidence_only", n_prompt=5, n_response=8), make_row(1, kind="masked"), make_row(4)]
    row = rows[0]
    weights = [torch.tensor(row.trajectory.trained_mask).float(), torch.zeros(6), torch.zeros(6)]
    config = CaopdConfig(loss=LossConfig(top_k=10))
    loss, _ = loss_of(config, tables, rows, weights)
    touched = gradient(loss, tables[0]).abs().sum(-1).nonzero().flatten().tolist()
    previous = [row.prompt_ids[-1], *row.trajectory.token_ids]
    assert set(touched) == {previous[i] for i, trained in enumerate(row.trajectory.trained_mask) if trained}


def test_zero_loss_and_gradient_where_student_is_teacher(tables):
    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    student = tables[0]
    rows = [replace(r, teacher_prompt_ids=r.teacher_prompt_ids and [9, *r.prompt_ids]) for r in mixed_rows()]
    loss, _ = loss_of(config, (student, student.detach().clone()), rows)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7)
    assert gradient(loss, student).abs().max() < 1e-6


@pytest.mark.parametrize("split", [[[0], [1], [2], [3], [4], [5]], [[5, 0, 3], [4, 2, 1]], [[2, 1], [0, 5, 4, 3]]])
def test_micro_batches_of_any_size_and_order_sum_to_the_whole(tables, split):
    from caopd_verl.verl_ext import codec

    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    rows = mixed_rows()
    weights = codec.loss_weights(rows, config.loss)
    whole, metrics = loss_of(config, tables, rows)
    parts = [loss_of(config, tables, [rows[i] for i in part], [weights[i] for i in part]) for part in split]
    total = sum(loss for loss, _ in parts)
    assert float(total.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    torch.testing.assert_close(gradient(total, tables[0]), gradient(whole, tables[0]), rtol=1e-5, atol=1e-7)
    for name, metric in metrics.items():
        assert sum(m[name].aggregate() for _, m in parts) == pytest.approx(metric.aggregate(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("dp_size", "n_mini_batches"), [(2, 1), (1, 4), (2, 3)])
def test_scaled_by_ranks_whose_gradients_are_averaged_and_by_mini_batches(tables, dp_size, n_mini_batches):
    config, rows = CaopdConfig(loss=LossConfig(top_k=6)), mixed_rows()
    plain = loss_of(config, tables, rows)[0]
    scaled = loss_of(config, tables, rows, dp_size=dp_size, n_mini_batches=n_mini_batches)[0]
    assert float(scaled.detach()) == pytest.approx(dp_size * n_mini_batches * float(plain.detach()), rel=1e-6)


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_ranks_with_uneven_rows_average_to_the_loss_of_one_rank(tables, average):
    """FSDP averages the ranks' gradients, however few trained tokens one of them has."""
    from caopd_verl.verl_ext import codec

    config = CaopdConfig(loss=LossConfig(top_k=6, average=average))
    rows = mixed_rows()
    weights = codec.loss_weights(rows, config.loss)
    whole = gradient(loss_of(config, tables, rows)[0], tables[0])
    ranks = [
        gradient(loss_of(config, tables, [rows[i] for i in own], [weights[i] for i in own], dp_size=2)[0], tables[0])
        for own in ([0, 5, 2], [1, 3, 4])
    ]
    torch.testing.assert_close(sum(ranks) / 2, whole, rtol=1e-5, atol=1e-7)


def test_t19_sampler_ratios_weigh_kept_tokens_only(tables):
    """Whatever stands for the sampler's log-probs at replaced tokens is never read."""
    config = CaopdConfig(loss=LossConfig(top_k=6, tis_clip=1.5))
    row = make_row(0, n_response=8)
    n = row.trajectory.n_kept
    garbage = (*row.rollout_log_probs[:n], *([float("nan")] * 5))
    loss = loss_of(config, tables, [row])[0]
    assert float(loss_of(config, tables, [replace(row, rollout_log_probs=garbage)])[0]) == float(loss)
    other = (row.rollout_log_probs[0] + 1.0, *row.rollout_log_probs[1:])
    assert float(loss_of(config, tables, [replace(row, rollout_log_probs=other)])[0]) != float(loss)


def test_t19_a_wholly_replaced_row_is_weighted_as_without_tis(tables):
    row = make_row(0, n_response=8)
    row = replace(row, trajectory=replace(row.trajectory, n_kept=0))
    on, off = (
        float(loss_of(CaopdConfig(loss=LossConfig(top_k=6, tis_clip=clip)), tables, [row])[0]) for clip in (2.0, None)
    )
    assert on == off


def test_is_weight_is_exactly_one_with_one_mini_batch(tables):
    rows = [make_row(0)]
    tight = CaopdConfig(loss=LossConfig(top_k=6, is_clip=1.0, tis_clip=None))
    wide = CaopdConfig(loss=LossConfig(top_k=6, is_clip=100.0, tis_clip=None))
    assert float(loss_of(tight, tables, rows)[0]) == float(loss_of(wide, tables, rows)[0])


# ---------------------------------------------------------------------- logged means


def test_step_metrics_are_means_over_trained_tokens(tables):
    from caopd_verl.verl_ext import codec, step_metrics

    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    rows = mixed_rows()
    weights = codec.loss_weights(rows, config.loss)
    parts = [loss_of(config, tables, [rows[i]], [weights[i]]) for i in range(len(rows))]
    raw = {name: sum(m[name].aggregate() for _, m in parts) for name in parts[0][1]}
    raw |= {"loss": sum(float(loss.detach()) for loss, _ in parts), "grad_norm": 0.5, "lr": 1e-5}
    found = step_metrics.of_update(raw | {"ema/distance": 0.25, "ema/skipped": 0.0})

    student, teacher = tables[0].detach().double(), tables[1].double()
    values, entropies, divergences = [], [], []
    for row in rows:
        previous = [
            row.prompt_ids[-1],
            *row.trajectory.token_ids,
        ]  # value and confidence tokens come later: same for both
        for i, token in enumerate(row.trajectory.token_ids):
            if not (row.n_trained and row.trajectory.trained_mask[i]):
                continue
            log_t, log_s = teacher[previous[i]].log_softmax(-1), student[previous[i]].log_softmax(-1)
            if row.trajectory.value_mask[i]:
                values.append(float(log_t[token].exp()))
            if row.trajectory.confidence_mask[i]:
                entropies.append(float(-(log_t.exp() * log_t).sum()))
                divergences.append(float((log_t.exp() * (log_t - log_s)).sum()))
    assert found["teacher/p_hat_token_prob"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert found["confidence/teacher_entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert found["loss/reasoning"] + found["loss/confidence"] == pytest.approx(found["loss/total"], rel=1e-5)
    assert found["confidence/divergence"] <= sum(divergences) / len(divergences)  # buckets lose information
    assert 0 < found["reasoning/topk_mass"] < 1
    assert (found["ema/distance"], found["actor/grad_norm"], found["actor/lr"]) == (0.25, 0.5, 1e-5)


def test_step_metrics_of_several_mini_batches_are_joined():
    from caopd_verl.verl_ext import step_metrics

    raw = {
        "loss": [1.0, 3.0],
        "grad_norm": [1.0, 2.0],
        "lr": [1e-5, 2e-5],
        "ema/distance": [0.1, 0.3],
        "ema/skipped": [0.0, 1.0],
        "sum/confidence_tokens": [2.0, 6.0],
        "sum/confidence_divergence": [1.0, 3.0],
        "sum/confidence_loss": [1.0, 2.0],
    }
    found = step_metrics.of_update({**raw, **{f"sum/confidence_{n}": [0.0, 0.0] for n in ("student_entropy",)}})
    assert found["loss/total"] == 2.0 and found["actor/grad_norm"] == 1.5 and found["actor/lr"] == 2e-5
    assert found["ema/skipped"] == 1.0
    assert found["confidence/divergence"] == 0.5 and found["loss/confidence"] == 1.5
    assert "reasoning/divergence" not in found  # no token, no mean


def test_step_metrics_of_groups_and_rows():
    from caopd_verl.core.target import compute_target
    from caopd_verl.types import Example, Rollout, RolloutGroup, Verdict
    from caopd_verl.verl_ext import step_metrics

    def group(*texts):
        rollouts = tuple(
            Rollout((1, 2), (-0.1, -0.1), text, Verdict(text.startswith("4"), "correct"), text == "cut")
            for text in texts
        )
        return RolloutGroup("1-0", Example("a", [], "4", "arithmetic", "s", "f:1"), (1,), rollouts)

    groups = [group("4\nConfidence: 0.8", "5\nConfidence: 1.0"), group("cut", "5"), group("4", "4\nConfidence: high")]
    verdicts = [[r.verdict.correct for r in g.rollouts] for g in groups]
    targets = [compute_target(v, leave_one_out=False, shrinkage=None) for v in verdicts]
    found = step_metrics.of_groups(groups, targets)
    third = pytest.approx(1 / 3)
    assert found["target/groups_none"] == third and found["target/groups_one"] == third
    assert found["target/groups_all"] == third and found["target/p_hat_mean"] == 0.5
    assert [found[f"target/successes_{k}"] for k in range(3)] == [1, 1, 1]
    assert found["rollout/acc"] == 0.5 and found["rollout/format_adherence"] == third
    assert found["rollout/stated_confidence"] == pytest.approx(0.9)  # unreadable ones are counted, not averaged as 0
    assert found["rollout/truncated"] == pytest.approx(1 / 6)
    rows = step_metrics.of_rows(mixed_rows())
    assert (rows["rows/total"], rows["rows/trained"], rows["rows/confidence_only"]) == (6, 4, 1)
    assert rows["rows/teacher_overlong"] == 1 and rows["rows/unsolved"] == 1 and rows["rows/replaced"] == 5
    assert rows["rows/trained_tokens"] == 7 + 2 + 4 + 5 and rows["train/empty_step"] == 0


# ---------------------------------------------------------------------- the EMA follows a step that was taken


@pytest.mark.parametrize(("norm", "taken"), [(0.7, True), (math.inf, False), (math.nan, False)])
def test_t14_the_engine_remembers_whether_the_step_was_taken(monkeypatch, norm, taken):
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    from caopd_verl.verl_ext.engine import CaopdEngine

    monkeypatch.setattr(FSDPEngineWithLMHead, "optimizer_step", lambda self: norm)
    engine = object.__new__(CaopdEngine)
    engine.optimizer_step()
    assert engine.step_taken is taken


@pytest.mark.parametrize("taken", [True, False])
def test_t14_the_teacher_moves_once_a_step_and_not_with_a_skipped_one(monkeypatch, taken):
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine_workers import TrainingWorker

    from caopd_verl.verl_ext.worker import StudentWorker

    output = TensorDict({}, batch_size=[])
    tu.assign_non_tensor(output, metrics={"loss": 1.0})
    monkeypatch.setattr(TrainingWorker, "train_batch", lambda self, data: output)
    worker = object.__new__(StudentWorker)
    student, teacher = torch.full((3,), 2.0), torch.zeros(3)
    worker.engine = SimpleNamespace(step_taken=taken, local_state=lambda: {"w": student})
    worker.teacher = SimpleNamespace(engine=SimpleNamespace(local_state=lambda: {"w": teacher}))
    worker.ema_rate = 0.25
    metrics = tu.get(worker.train_batch(TensorDict({}, batch_size=[])), "metrics")
    assert teacher.tolist() == ([0.5] * 3 if taken else [0.0] * 3)
    assert metrics["ema/skipped"] == float(not taken) and (metrics["ema/distance"] > 0) is taken
