"""Every trap of the method that this package guards against has a test that carries its number.

The numbers are those used in comments and docs: T1 boundary token, T2 re-encoding, T3 first-occurrence strip,
T4 missing confidence, T5 truncation, T6 end of turn, T7 digit tokens, T8 a teacher that ignores the target,
T12-T14 EMA precision, shards and timing, T15 low-precision top-k, T16 unsolved groups, T17 the demonstration's own
confidence, T19 sampler ratios, T20 order of a step, T21 padding and limits, T22 verifier and confidence line,
T25 truncated teacher prompt, T28 prompt parity, T29 unparsed confidences, T30 undefined SPR, T31 bin edges.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TRAPS = [*range(1, 9), *range(12, 18), *range(19, 23), 25, *range(28, 32)]
NAMED = re.compile(r"^ *def test_t(\d+)_", re.MULTILINE)
FOUND = {
    int(number)
    for file in Path(__file__).parent.rglob("test_*.py")
    for number in NAMED.findall(file.read_text())
}


@pytest.mark.parametrize("number", TRAPS)
def test_the_trap_has_a_test_of_its_own(number):
    assert number in FOUND, f"no test is named test_t{number}_..."
