"""Verifiers: one rule for each form of answer, the same for reward, success rate and evaluation.

`get_verifier(name)` is the only way in. A new verifier is one file and one row in `registry.TABLE`.
"""

from __future__ import annotations

from caopd_verl.verifiers.registry import get_verifier, verifier_names
from caopd_verl.verifiers.verifier import Verifier

__all__ = ["Verifier", "get_verifier", "verifier_names"]
