"""Entry point `verl.plugins`: runs at `import verl`, in the driver and in every Ray worker.

It only registers the CPU platform, which is cheap; trainer and engine are registered by the modules
that define them. verl loads this module and calls nothing in it, so the last line does the work.
verl logs a failing plugin at DEBUG level only: `runner` calls `register` once more, and so fails
where the user can see it.
"""

from __future__ import annotations


def register() -> None:
    """Enter the platform "cpu"; once a process, however often it is called."""
    from caopd_verl.verl_ext import cpu_platform  # noqa: F401  (registers on import)


register()
