"""The summary as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caopd_verl.evaluation.intervals.compare import Comparison

SHOWN = {
    "acc": "accuracy",
    "mean_conf": "mean confidence",
    "ocg": "overconfidence gap (OCG)",
    "ece": "ECE",
    "ece_mass": "ECE, equal mass",
    "ece_debiased": "ECE, debiased",
    "ece_smooth": "SmoothECE",
    "mce": "MCE",
    "brier": "Brier",
    "nll": "NLL",
    "spr": "SPR",
    "auroc": "AUROC",
    "tie_rate": "tie rate",
    "aurc": "AURC",
    "acc_at_50": "accuracy at 50 % coverage",
    "acc_at_80": "accuracy at 80 % coverage",
    "format_adherence": "format adherence",
}
SIGNED = ("ocg",)


def number(figure: Mapping[str, Any], name: str) -> str:
    """`0.123 [0.100, 0.150]`, or `undefined`."""
    if figure["value"] is None:
        return "undefined"
    sign = "+" if name in SIGNED else ""
    text = f"{figure['value']:{sign}.3f}"
    if figure["low"] is not None:
        text += f" [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"
    return text


def summary_text(metrics: Mapping[str, Any]) -> str:
    """The counts, then a table with a column for each readout, then the noise floors and the reasons."""
    lines = [counts_text(metrics["counts"]), ""]
    readouts = metrics["readouts"]
    width = 26
    lines.append(f"{'':{width}}" + "".join(f"{name:>28}" for name in readouts))
    for name, label in SHOWN.items():
        cells = [number(r["metrics"][name], name) for r in readouts.values()]
        lines.append(f"{label:{width}}" + "".join(f"{cell:>28}" for cell in cells))
        if name == "ece":
            floors = [_floor(r["noise_floor"]) for r in readouts.values()]
            lines.append(f"{'  if calibrated':{width}}" + "".join(f"{cell:>28}" for cell in floors))
    settings = metrics["settings"]
    lines.append("")
    lines.append(
        f"{settings['level']:.0%} bootstrap over {metrics['n_questions']} questions; rows without a confidence:"
        f" {settings['missing']}; 'if calibrated': ECE of a perfectly calibrated model here, mean and 95th percentile"
    )
    lines += [f"no {name}: {reason}" for name, reason in metrics["absent"].items()]
    stated = readouts["stated"]["metrics"]
    lines += [
        f"{SHOWN[k]}: {stated[k]['reason']}" for k in ("ece", "spr") if stated[k]["value"] is None
    ]
    if "compat" in metrics:
        lines.append("as the paper's code counts: " + _flat(metrics["compat"]))
    return "\n".join(lines)


def counts_text(counts: Mapping[str, Any]) -> str:
    """What became of the rows."""
    head = f"{counts['rows']} rows: {counts['finished']} finished"
    for key in ("failed", "unusable", "not_asked"):
        if counts[key]:
            head += f", {counts[key]} {key.replace('_', ' ')}"
    lines = [head]
    for what in ("response", "verdict", "confidence"):
        if found := counts.get(f"by_{what}"):
            lines.append(f"  {what}: " + ", ".join(f"{n} {name}" for name, n in found.items()))
    lines += [f"  failed: {n} x {reason}" for reason, n in counts["why_failed"].items()]
    return "\n".join(lines)


def comparison_text(comparison: Comparison, old: str, new: str, readout: str) -> str:
    """The paired differences as a table."""
    lines = [
        f"{new} against {old}, {readout} confidence, {comparison.n_questions} common questions"
        + (
            f" ({comparison.only_old} and {comparison.only_new} others left out)"
            if _left_out(comparison)
            else ""
        ),
        f"{'':26}{'old':>10}{'new':>10}{'difference':>28}   verdict",
    ]
    for name, d in comparison.metrics.items():
        label = SHOWN.get(name, {"abs_ocg": "|OCG|"}.get(name, name))
        if d.difference is None:
            lines.append(f"{label:26}{_plain(d.old):>10}{_plain(d.new):>10}{'undefined':>28}")
            continue
        text = f"{d.difference:+.3f}" + (
            f" [{d.low:+.3f}, {d.high:+.3f}]" if d.low is not None else ""
        )
        lines.append(f"{label:26}{_plain(d.old):>10}{_plain(d.new):>10}{text:>28}   {d.verdict}")
    return "\n".join(lines)


def _left_out(comparison: Comparison) -> bool:
    return bool(comparison.only_old or comparison.only_new)


def _plain(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _floor(floor: Mapping[str, Any] | None) -> str:
    return "" if floor is None else f"{floor['mean']:.3f}, p95 {floor['p95']:.3f}"


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
        if not isinstance(value, Mapping)
    )
