"""Which tests are collected: the proxy's need the `proxy` extra, the command's the `eval` one."""

from __future__ import annotations

from importlib.util import find_spec

PROXY = ("starlette", "uvicorn", "httpx", "prometheus_client")
NEEDS = {
    "test_proxy.py": PROXY,
    "test_proxy_failures.py": PROXY,
    "test_route.py": ("matplotlib",),
    "test_route_command.py": ("matplotlib",),
}


def _missing(modules):
    return [module for module in modules if find_spec(module) is None]


_reasons = {file: ", ".join(_missing(modules)) for file, modules in NEEDS.items()}
collect_ignore = [file for file, missing in _reasons.items() if missing]


def pytest_report_header(config):
    """Say what is left out, as pytest itself says nothing of files that it ignores."""
    return [f"not collected: {file} needs {_reasons[file]}" for file in collect_ignore]
