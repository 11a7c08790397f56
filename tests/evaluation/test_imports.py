import subprocess
import sys

import pytest

HEAVY = ("torch", "verl", "ray", "vllm", "transformers")


@pytest.mark.parametrize(
    "module",
    [
        "caopd_verl.evaluation.metrics",
        "caopd_verl.evaluation.expected",
        "caopd_verl.evaluation.plots",
        "caopd_verl.verifiers",
        "caopd_verl.data.registry",
    ],
)
def test_offline_layers_import_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"
