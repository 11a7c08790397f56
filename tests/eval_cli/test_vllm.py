"""vLLM's offline class and vLLM's own OpenAI-compatible server, with the tiny model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from caopd_verl.cli import OK, main
from tests.eval_cli.test_local import TINY

pytestmark = [pytest.mark.slow, pytest.mark.stack]
ASK = "--task arithmetic --limit 24 --max-tokens 24 --seed 0 --no-progress --n-resamples 20"


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_the_offline_engine_reads_what_transformers_reads(tmp_path):
    import torch

    from caopd_verl.data.registry import load_task
    from caopd_verl.evaluation.settings import Local, Sampling
    from caopd_verl.evaluation.sources.local import TransformersBackend

    command = [sys.executable, "-m", "caopd_verl.cli", "eval", "--model", TINY, *ASK.split()]
    command += ["--backend", "vllm", "--max-model-len", "512", "--gpu-memory", "0.1"]
    command += ["--p-true", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=500)
    assert done.returncode == OK, done.stderr[-3000:]
    rows = rows_of(tmp_path)
    torch.set_num_threads(1)
    backend = TransformersBackend(TINY, sampling=Sampling(), local=Local(p_true=True))
    questions = {e.id: e for e in load_task("arithmetic", path=None, seed=0, n=24, split="test")}
    assert len(rows) == 24 and not any(row["truncated"] for row in rows)
    for row in rows:
        chat = questions[row["id"]].messages
        ids = backend.tokenizer.encode(row["response"], add_special_tokens=False)
        (exact,) = backend.read([backend.prompt_ids(chat)], [ids])
        assert row["expected_confidence"] == pytest.approx(exact.value, abs=1e-5)
        assert row["expected_t1_confidence"] == pytest.approx(exact.value_t1, abs=1e-5)
        assert row["expected_mass"] == pytest.approx(exact.mass, abs=1e-5)
        (asked,) = backend.ask([chat], [row["response"]])
        assert row["p_true"] == pytest.approx(asked.value, abs=1e-4)


def test_vllms_own_server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", TINY]
    command += f"--served-model-name tiny --host 127.0.0.1 --port {port}".split()
    command += ["--max-model-len", "256", "--gpu-memory-utilization", "0.1", "--dtype", "float32"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", server, tmp_path / "server.log")
        url, output = f"http://127.0.0.1:{port}/v1", str(tmp_path / "o")
        assert (
            main(["eval", "--endpoint", url, "--model", "tiny", *ASK.split(), "-o", output]) == OK
        )
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its engine is a process of its own
        server.wait()
    rows = rows_of(tmp_path / "o")
    assert len(rows) == 24
    assert all(row["confidence_status"] == "ok" and row["n_tokens"] > 0 for row in rows)
    assert all(row["expected_kind"] == "approximate" and row["expected_mass"] > 0.3 for row in rows)


def environment():
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def wait_until_healthy(url, server, log):
    for _ in range(300):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError("the server did not start")
