"""Single-line faults, each of which the fast tests must notice: (file, line, fault, tests)."""

from __future__ import annotations

GRAMMAR = ("tests/core/test_confidence.py",)
REVISION = ("tests/core/test_revise.py", "tests/core/test_splice.py")
CONTEXT = ("tests/core/test_context.py",)
EMA = ("tests/core/test_ema.py",)
TARGETS = ("tests/core/test_targets.py",)
LOSSES = ("tests/losses",)
METHODS = ("tests/methods", "tests/test_pipeline.py")
VERIFIERS = ("tests/verifiers",)
PREFLIGHT = ("tests/test_resume.py", "tests/test_bad_input.py")
WORKERS = (
    "tests/verl_ext/test_codec.py",
    "tests/verl_ext/test_update.py",
    "tests/verl_ext/test_sampling.py",
    "tests/verl_ext/test_step_metrics.py",
)
METRICS = ("tests/evaluation/test_metrics.py",)

MUTATIONS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    # the confidence grammar and the revision
    ("core/confidence.py", "value = value / 100", "value = value / 10", GRAMMAR),
    (
        "core/confidence.py",
        "if not 0.0 <= value <= 1.0:\n        return",
        "if not 0.0 <= value <= 100.0:\n        return",
        GRAMMAR,
    ),
    ("core/confidence.py", "abs(value):.2f", "abs(value):.1f", GRAMMAR),
    ("core/confidence.py", "last = match", "last = last or match", GRAMMAR),
    (
        "core/revise.py",
        "len(segment.token_ids) + 1  # 1",
        "len(segment.token_ids) + 0  # 1",
        REVISION,
    ),
    ("core/revise.py", "min(ends, default=None)", "max(ends, default=None)", REVISION),
    ("core/revise.py", "text[: parsed.start] if parsed.found", "text if parsed.found", REVISION),
    ("core/revise.py", "return n_before - n_excess", "return n_before", REVISION),
    # teacher context, EMA, targets
    ("core/context.py", "if index != own]", "if index >= 0]", CONTEXT),
    (
        "core/context.py",
        "return tail[word.start() + 1 :] if word else tail",
        "return tail[:-1]",
        CONTEXT,
    ),
    ("core/ema.py", "target.lerp_(source, rate)", "target.lerp_(source, 1 - rate)", EMA),
    ("core/ema.py", "source = _local(student[name])", "source = _local(teacher_tensor)", EMA),
    (
        "core/targets/success_rate.py",
        "[successes - own for own in verdicts]",
        "[successes for own in verdicts]",
        TARGETS,
    ),
    ("core/targets/success_rate.py", "(s + a) / (k - 1 + a + b)", "(s + a) / (k - 1)", TARGETS),
    (
        "core/targets/running.py",
        "self._estimates[prompt_id] = estimate",
        "self._estimates[prompt_id] = now.p_hat",
        TARGETS,
    ),
    (
        "core/targets/target.py",
        "return self.successes == self.k",
        "return self.p_hat == 1.0",
        TARGETS,
    ),
    # losses
    ("losses/buckets.py", "slopes = log_s - log_t", "slopes = log_t - log_s", LOSSES),
    ("losses/buckets.py", "exps_CV.scatter_(-1, ids_CK, 0.0)", "exps_CV", LOSSES),
    ("losses/buckets.py", "(1 - inner_C1) * (log_s", "inner_C1 * (log_s", LOSSES),
    ("losses/divergence.py", "upstream_C / options.temperature", "upstream_C", LOSSES),
    (
        "losses/averaging.py",
        "1.0 / mean_length, 1.0 / safe_B",
        "1.0 / safe_B, 1.0 / safe_B",
        LOSSES,
    ),
    (
        "losses/averaging.py",
        "mean_row = 1.0 if n_whole else",
        "mean_row = 1.0 if True else",
        LOSSES,
    ),
    ("losses/importance.py", ".exp().clamp(max=clip)", ".exp()", LOSSES),
    (
        "losses/terms.py",
        "batch.has_role(roles), batch.weights_T, 0.0",
        "batch.has_role(roles), batch.weights_T, batch.weights_T",
        LOSSES,
    ),
    ("losses/log_probs.py", "(logits_CV.float() / temperature)", "(logits_CV.float())", LOSSES),
    # methods and pipeline
    (
        "methods/distillation.py",
        "demonstration = revise_text(demonstration, value)",
        "pass",
        METHODS,
    ),
    ("methods/distillation.py", "float(role in trained)", "1.0", METHODS),
    (
        "methods/distillation.py",
        "return RolloutPlan(1 + rollouts, 1, judged_from=1)",
        "return RolloutPlan(1 + rollouts, 1)",
        METHODS,
    ),
    (
        "methods/distillation.py",
        '"no_demonstration" if target.solved else "unsolved"',
        '"unsolved"',
        METHODS,
    ),
    ("methods/responses.py", "not rollout.truncated and any", "any", METHODS),
    ("methods/rewards.py", "return float(rollout.verdict.correct)", "return 1.0", METHODS),
    ("pipeline.py", "trajectory = trajectory.masked(TEACHER_OVERLONG)", "pass", METHODS),
    ("pipeline.py", "in plan.judged(group)]", "in group.rollouts]", METHODS),
    # verifiers
    ("verifiers/arithmetic.py", "response[: parse(response).start]", "response", VERIFIERS),
    (
        "verifiers/multiple_choice.py",
        "Verdict(letter == gold, CORRECT",
        "Verdict(letter >= gold, CORRECT",
        VERIFIERS,
    ),
    ("verifiers/tool_call.py", "sort_keys=True", "sort_keys=False", VERIFIERS),
    # checks before Ray
    (
        "preflight/checks/sampling.py",
        "if is_greedy and n > 1:",
        "if is_greedy and n > 2:",
        PREFLIGHT,
    ),
    (
        "preflight/checks/devices.py",
        "if context.ranks > logical:",
        "if context.ranks > logical + 1:",
        PREFLIGHT,
    ),
    (
        "preflight/checks/resume.py",
        "if now.get(key) != value:",
        "if key.startswith('data') and now.get(key) != value:",
        PREFLIGHT,
    ),
    # the workers' side
    (
        "verl_ext/codec.py",
        "(torch.arange(n_tokens) < n_sampled)",
        "(torch.arange(n_tokens) <= n_sampled)",
        WORKERS,
    ),
    ("verl_ext/codec.py", "lengths_B = lengths_B + fields", "lengths_B = fields", WORKERS),
    ("verl_ext/update.py", '"temperature": 1.0,', '"temperature": self.temperature,', WORKERS),
    ("verl_ext/sampling.py", '"val": 1}', '"val": 0}', WORKERS),
    (
        "verl_ext/engine.py",
        "return math.isfinite(grad_norm)",
        "return not math.isnan(grad_norm)",
        WORKERS,
    ),
    ("verl_ext/step_metrics.py", "_total(raw[key]) / n_values", "_total(raw[key])", WORKERS),
    # metrics
    ("evaluation/metrics/formulas.py", "return mean_conf - acc", "return acc - mean_conf", METRICS),
    (
        "evaluation/metrics/formulas.py",
        "return bins.gap @ bins.share",
        "return bins.gap.mean(-1)",
        METRICS,
    ),
    (
        "evaluation/metrics/formulas.py",
        "tolerance = _EDGE_TOLERANCE * n_bins",
        "tolerance = 0.0",
        METRICS,
    ),
)
