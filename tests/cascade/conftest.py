"""Which tests can be collected here: those of the proxy need the `proxy` extra, those of the command the `eval` one."""

from importlib.util import find_spec

NEEDS = {
    "test_proxy.py": ("starlette", "uvicorn", "httpx", "prometheus_client"),
    "test_route.py": ("matplotlib",),
}
_missing = {file: [m for m in modules if find_spec(m) is None] for file, modules in NEEDS.items()}
collect_ignore = [file for file, modules in _missing.items() if modules]


def pytest_report_header(config):
    return [
        f"not collected: {file} needs {', '.join(modules)}"
        for file, modules in _missing.items()
        if modules
    ]
