"""Entry point `verl.plugins`: runs at `import verl`, in the driver and in every Ray worker.

It only registers the CPU platform, which is cheap; trainer and engine are registered by the modules that define them.
verl logs a failing plugin at DEBUG level only, so `compat`'s caller checks `is_registered` and fails loudly.
"""

from __future__ import annotations


def register() -> None:
    from caopd_verl.verl_ext import cpu_platform  # noqa: F401  (registers on import)


def is_registered() -> bool:
    from verl.plugin.platform import PlatformRegistry

    return PlatformRegistry.get("cpu") is not None


register()
