"""The summary as text for the terminal, and how figures are written wherever people read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from caopd_verl.evaluation.intervals.compare import Comparison, Difference

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
"""Metric -> its label, in the order of the tables."""

# Three decimals everywhere: at 1,000 rows an interval is about 0.06 wide, further digits are noise.
SIGNED = ("ocg",)  # whose sign says over- or underconfident
UNDEFINED = "undefined"
IF_CALIBRATED = (
    "'if calibrated': ECE of a perfectly calibrated model here, mean and 95th percentile"
)
_LABEL = 26  # characters of a table's first column
_CELL = 28


def label_of(metric: str) -> str:
    """A metric's label; of one that has none, its name."""
    if metric == "abs_ocg":
        return "|OCG|"
    return SHOWN.get(metric, metric)


def number(figure: Mapping[str, Any], metric: str) -> str:
    """`0.123 [0.100, 0.150]`, or `undefined`."""
    if figure["value"] is None:
        return UNDEFINED
    form = "+.3f" if metric in SIGNED else ".3f"
    return _with_interval(figure["value"], figure["low"], figure["high"], form)


def plain(value: float | None) -> str:
    """`0.123`, or `undefined`."""
    return UNDEFINED if value is None else f"{value:.3f}"


def difference_text(found: Difference) -> str:
    """`+0.012 [-0.010, +0.034]`, or `undefined`."""
    if found.difference is None:
        return UNDEFINED
    return _with_interval(found.difference, found.low, found.high, "+.3f")


def summary_text(metrics: Mapping[str, Any]) -> str:
    """Counts, a table with a column for each readout, then noise floors and reasons."""
    settings, readouts = metrics["settings"], metrics["readouts"]
    lines = [counts_text(metrics["counts"]), "", *_table(readouts), ""]
    bootstrap = f"{settings['level']:.0%} bootstrap over {metrics['n_questions']} questions"
    without = f"rows without a confidence: {settings['missing']}"
    lines.append(f"{bootstrap}; {without}; {IF_CALIBRATED}")
    for name, reason in metrics["absent"].items():
        lines.append(f"no {name}: {reason}")
    stated = readouts["stated"]["metrics"]
    for metric in ("ece", "spr"):
        if stated[metric]["value"] is None:
            lines.append(f"{SHOWN[metric]}: {stated[metric]['reason']}")
    if "compat" in metrics:
        lines.append(f"as the paper's code counts: {compat_text(metrics['compat'])}")
    return "\n".join(lines)


def counts_text(counts: Mapping[str, Any]) -> str:
    """What became of the rows."""
    head = f"{counts['rows']} rows: {counts['finished']} finished"
    for key in ("failed", "unusable", "not_asked"):
        if counts[key]:
            head += f", {counts[key]} {key.replace('_', ' ')}"
    lines = [head]
    for what in ("response", "verdict", "confidence"):
        found = counts.get(f"by_{what}")
        if found:
            shares = [f"{n} {value}" for value, n in found.items()]
            lines.append(f"  {what}: {', '.join(shares)}")
    for reason, n in counts["why_failed"].items():
        lines.append(f"  failed: {n} x {reason}")
    return "\n".join(lines)


def comparison_text(comparison: Comparison, old: str, new: str, readout: str) -> str:
    """The paired differences as a table."""
    common = f"{comparison.n_questions} common questions{_left_out(comparison)}"
    lines = [f"{new} against {old}, {readout} confidence, {common}"]
    lines.append(_difference_line("", "old", "new", "difference", "verdict"))
    for metric, found in comparison.metrics.items():
        old_figure, new_figure = plain(found.old), plain(found.new)
        difference, verdict = difference_text(found), found.verdict or ""
        label = label_of(metric)
        lines.append(_difference_line(label, old_figure, new_figure, difference, verdict))
    return "\n".join(lines)


def compat_text(values: Mapping[str, Any]) -> str:
    """The figures as the paper's code counts them, in one line."""
    parts = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            continue  # counts of how its parser read the responses: too many for a line
        shown = f"{value:.4f}" if isinstance(value, float) else value
        parts.append(f"{name} {shown}")
    return ", ".join(parts)


def _table(readouts: Mapping[str, Any]) -> Iterator[str]:
    def line(label: str, cells: list[str]) -> str:
        right = [f"{cell:>{_CELL}}" for cell in cells]
        return f"{label:{_LABEL}}{''.join(right)}"

    yield line("", list(readouts))
    for metric, label in SHOWN.items():
        figures = [readout["metrics"][metric] for readout in readouts.values()]
        yield line(label, [number(figure, metric) for figure in figures])
        if metric == "ece":
            # An ECE can't be read without it: chance alone makes one of 0.12 at 68 rows.
            floors = [_floor(readout["noise_floor"]) for readout in readouts.values()]
            yield line("  if calibrated", floors)


def _difference_line(label: str, old: str, new: str, difference: str, verdict: str) -> str:
    line = f"{label:{_LABEL}}{old:>10}{new:>10}{difference:>{_CELL}}"
    return f"{line}   {verdict}" if verdict else line


def _with_interval(value: float, low: float | None, high: float | None, form: str) -> str:
    """`0.123 [0.100, 0.150]`; the value alone where there is no interval."""
    text = f"{value:{form}}"
    if low is not None:
        text += f" [{low:{form}}, {high:{form}}]"
    return text


def _left_out(comparison: Comparison) -> str:
    if not comparison.only_old and not comparison.only_new:
        return ""
    return f" ({comparison.only_old} and {comparison.only_new} others left out)"


def _floor(floor: Mapping[str, Any] | None) -> str:
    if floor is None:
        return ""
    return f"{floor['mean']:.3f}, p95 {floor['p95']:.3f}"
