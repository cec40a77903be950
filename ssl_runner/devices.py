"""What this machine has, and the number formats that suit it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_runner.errors import RequestError


def accelerator(wanted: str) -> str:
    """ "auto", "cpu", "gpu" or "tpu" -> what Lightning is told. Raises RequestError when it is not here."""
    gpu, tpu = torch.cuda.is_available(), _has_tpu()
    if wanted == "auto":
        return "gpu" if gpu else "tpu" if tpu else "cpu"
    here = [name for name, there in (("gpu", gpu), ("tpu", tpu)) if there] + [f"cpu ({_cores()} cores)"]
    if (wanted == "gpu" and not gpu) or (wanted == "tpu" and not tpu):
        why = "torch sees no CUDA GPU" if wanted == "gpu" else "torch_xla is not installed or sees no TPU"
        raise RequestError(f"device.accelerator={wanted}: {why}; there is: {', '.join(here)}. Use device=auto")
    return wanted


def ranks(device: Mapping[str, Any], accelerator: str) -> int:
    """How many processes a config's device comes to, over all nodes; of TPUs, how many are asked for, or 1."""
    asked = device["devices"]
    if asked == "auto":
        asked = torch.cuda.device_count() if accelerator == "gpu" else 1
    return (len(asked) if isinstance(asked, list) else asked) * device["num_nodes"]


def precision(mode: str, device: str) -> tuple[str, str]:
    """The mode Lightning gets, and why.

    auto is bf16-mixed where the hardware computes bf16 natively: a TPU, a GPU from Ampere on, a CPU with
    AVX512-BF16, AMX or ARM's bf16 extension. Elsewhere bf16 is emulated and slower, so it is 32.
    """
    if mode == "fp8" and (device != "gpu" or torch.cuda.get_device_capability() < (8, 9)):
        this = torch.cuda.get_device_name() if device == "gpu" else f"a {device.upper()}"
        raise RequestError(
            f"precision.mode=fp8: needs a GPU from compute capability 8.9 on, and this is {this}; use precision=auto"
        )
    if mode != "auto":
        return {"32": "32-true"}.get(mode, mode), "as asked"
    if device == "tpu":
        return "bf16-true", "TPUs compute in bf16"
    if device == "gpu":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name()
        return ("bf16-mixed", f"{name} computes bf16") if native else ("32-true", f"{name} has no native bf16")
    flags = _cpu_flags()
    found = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags]
    if found:
        return "bf16-mixed", f"this CPU has {found[0].upper()}"
    return "32-true", "this CPU has no native bf16"


def autocast(mode: str, device: str) -> str:
    """The part of a mode that is Lightning's. bf16-true and fp8 are weights of another kind, see ssl_runner.parallel;
    what meets them is brought to their kind as in bf16-mixed. TPUs have a bf16-true of their own."""
    return "bf16-mixed" if mode == "fp8" or (mode == "bf16-true" and device != "tpu") else mode


def tune_allocator() -> bool:
    """Lets glibc keep freed memory for the next step instead of giving it back to the system each time.

    Training frees and asks for the same large blocks in every step; by default each comes from mmap, is
    zeroed page by page and unmapped again. Measured 1.1 to 1.8 times faster steps on CPU. The price is that
    the process holds on to its peak memory. Turned off by device.tune_allocator=false.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another libc, such as musl
        return False
    return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))


def _has_tpu() -> bool:
    try:
        import torch_xla.runtime as xla  # noqa: F401
    except ImportError:
        return False
    return True


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    words = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(words, "").split())
