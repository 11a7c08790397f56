"""Calibration targets: which confidence a prompt's responses ought to state.

A new rule is one file here, one choice of `config.TargetRule` and one line of `make_target_rule`.
"""

from __future__ import annotations

from caopd_verl.core.targets.running import RunningEstimate
from caopd_verl.core.targets.success_rate import SuccessRate
from caopd_verl.core.targets.target import Target, TargetRule

__all__ = ["RunningEstimate", "SuccessRate", "Target", "TargetRule"]
