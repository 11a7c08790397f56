"""verl platform "cpu": FSDP2 over gloo, and vLLM's CPU build.

Ranks are placed by Ray's logical GPUs, exactly as on GPUs: Ray accepts `num_gpus=N` on a machine
without any. Chosen by VERL_PLATFORM=cpu, which `runner` sets for `trainer.device=cpu`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


class _CPUDeviceModule(ModuleType):
    """`torch.cpu` with the memory and RNG functions that verl calls on `torch.cuda`.

    Of the first a CPU has nothing to report; torch keeps the RNG functions elsewhere for it.
    """

    def __init__(self) -> None:
        super().__init__("caopd_verl_cpu_device")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def empty_cache(self) -> None: ...

    def ipc_collect(self) -> None: ...

    def synchronize(self, device: Any = None) -> None: ...

    def set_device(self, device: Any) -> None: ...

    def reset_peak_memory_stats(self, device: Any = None) -> None: ...

    def memory_allocated(self, device: Any = None) -> int:
        return 0

    def memory_reserved(self, device: Any = None) -> int:
        return 0

    def max_memory_allocated(self, device: Any = None) -> int:
        return 0

    def max_memory_reserved(self, device: Any = None) -> int:
        return 0

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        import psutil

        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def current_device(self) -> str:
        return "cpu"

    def get_device_name(self, device: Any = None) -> str:
        return "CPU"  # verl's FLOPs table has a row of that name

    def device_count(self) -> int:
        return 1

    def is_available(self) -> bool:
        return True

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


_DEVICE_MODULE = _CPUDeviceModule()


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """The host processor as verl's accelerator."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Auto-detection must keep preferring real accelerators: VERL_PLATFORM alone chooses cpu.
        return False

    def current_device(self) -> Any:
        return "cpu"  # verl calls tensor.to(get_device_id()), and to(0) would mean cuda:0

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # Ray's logical GPUs are numbered through it

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # weights reach vLLM through shared memory

    def rollout_env_vars(self) -> dict[str, str]:
        # Ray hands its env to actors; these must reach vLLM's own processes as well.
        return {key: value for key, value in os.environ.items() if key.startswith("VLLM_")}

    def cudart(self) -> Any:
        return None
