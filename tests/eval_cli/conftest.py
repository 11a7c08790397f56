"""Which tests can be collected here.

Those of local checkpoints need torch, those of endpoints and reports the `eval` extra.
"""

from importlib.util import find_spec

NEEDS = {
    "test_endpoint.py": ("aiohttp", "filelock", "tqdm"),
    "test_responses.py": ("filelock", "tqdm"),
    "test_report.py": ("matplotlib", "jinja2", "filelock", "tqdm"),
    "test_training_runs.py": ("matplotlib", "jinja2", "filelock", "tqdm"),
    "test_vllm.py": ("torch", "transformers", "vllm", "aiohttp", "filelock", "tqdm"),
    "test_local.py": ("torch", "transformers", "filelock", "tqdm"),
}
_missing = {file: [m for m in modules if find_spec(m) is None] for file, modules in NEEDS.items()}
collect_ignore = [file for file, modules in _missing.items() if modules]


def pytest_report_header(config):
    return [
        f"not collected: {file} needs {', '.join(modules)}"
        for file, modules in _missing.items()
        if modules
    ]
