"""Temperature, top-p and top-k over candidates, by hand."""

import math

import numpy as np
import pytest

from caopd_verl.errors import ConfigError
from caopd_verl.evaluation.readouts.decoding import Decoding, decoded_weights

AS_MODEL = Decoding(temperature=1.0, top_p=1.0)
PAPER = Decoding(temperature=0.6, top_p=0.95)


def test_weights_by_hand_and_bad_settings():
    log_probs = np.log([0.5, 0.3, 0.2])
    assert decoded_weights(log_probs, AS_MODEL) == pytest.approx([0.5, 0.3, 0.2])
    assert decoded_weights(log_probs, Decoding(1.0, 0.8)) == pytest.approx([0.625, 0.375, 0.0])
    assert decoded_weights(log_probs, Decoding(0.5, 1.0)) == pytest.approx(
        [25 / 38, 9 / 38, 4 / 38]
    )
    assert decoded_weights(log_probs, Decoding(1.0, 0.1)) == pytest.approx([1.0, 0.0, 0.0])
    assert decoded_weights(log_probs, Decoding(1.0, 1.0, top_k=2)) == pytest.approx(
        [0.625, 0.375, 0.0]
    )
    assert not Decoding(1.0, 1.0, top_k=2).as_model
    assert decoded_weights([-math.inf, -700.0], PAPER) == pytest.approx([0.0, 1.0])
    assert decoded_weights([-math.inf, -math.inf], PAPER).tolist() == [0.0, 0.0]
    for temperature, top_p in ((-0.1, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, 1.1)):
        with pytest.raises(ConfigError, match="temperature"):
            Decoding(temperature, top_p)
