"""Two runs on one machine: verl names weight-sync sockets after Ray's job id.

The first job of every cluster has the id 01000000, so two runs would share a socket. That sender
and receiver of one run agree on the name is what every test in tests/stack shows: else they hang.
"""

from types import SimpleNamespace

import ray

from caopd_verl.verl_ext.compat import run_id


def test_runs_in_clusters_of_their_own_have_ids_of_their_own(monkeypatch):
    ids = []
    for port in (6379, 6380):
        context = SimpleNamespace(gcs_address=f"127.0.0.1:{port}", get_job_id=lambda: "01000000")
        monkeypatch.setattr(ray, "get_runtime_context", lambda context=context: context)
        ids.append(run_id())
    assert ids == ["6379-01000000", "6380-01000000"]
