"""Which responses came to their end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caopd_verl.config import CaopdConfig
from caopd_verl.methods.responses import ends_its_turn
from tests.services import FakeServices


@pytest.mark.parametrize(
    ("truncated", "with_stop", "expected"),
    [
        (False, True, True),
        (False, False, False),  # aborted: neither an end of turn nor the limit
        (True, False, False),
        (True, True, False),  # an end of turn in the middle, where sampling went past it
    ],
)
def test_a_response_ends_its_turn(rollout, tiny_tokenizer, eot, truncated, with_stop, expected):
    services = FakeServices(CaopdConfig(), tiny_tokenizer, eot)
    response = rollout("7\nConfidence: 0.90")
    ids = response.token_ids if with_stop else response.token_ids[:-1]
    response = replace(response, token_ids=ids, truncated=truncated)
    assert ends_its_turn(response, services) is expected
