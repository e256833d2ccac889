"""What this machine can do: which device, in which number format, compiled or not, and how fast at best.
Takes the recipe's wishes and the size of the work, gives settings that training records and keeps.
It does not know models or data.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from qalam_core.errors import TrainingError
from qalam_core.recipe import Train

__all__ = ["Numerics", "choose_device", "choose_numerics", "memory_mb", "peak_flops"]

# Compiling costs 20 to 30 s on two cores and saves an eighth of each step (benchmarks/RESULTS.md), so it pays from
# some 250 s of training on; eager training does about 3e11 operations a second there. The GPU's figure is a guess.
_COMPILING_PAYS = 8e13
_COMPILING_PAYS_CUDA = 1e16

# Dense bfloat16 operations per second, from the makers' data sheets; by a part of the device's name.
_PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A10G": 70e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


@dataclass(frozen=True)
class Numerics:
    """What decides the last bits of a result, with every "auto" replaced by what it came to."""

    device: str  # torch's kind of device, and a GPU's name
    dtype: str
    compile: str


def choose_device(wish: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; TrainingError when there is no GPU to be had."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise TrainingError("train.device is cuda, and torch sees no GPU here; set train.device to auto or cpu")
    return torch.device("cuda" if wish != "cpu" and torch.cuda.is_available() else "cpu")


def choose_numerics(settings: Train, device: torch.device, parameters: int, context: int) -> Numerics:
    """The number format and whether to compile, for a model of so many parameters.

    A function of the recipe and the kind of machine alone: never of timings or of what is in a cache.
    Raises TrainingError for what the recipe demands and the machine lacks.
    """
    cuda = device.type == "cuda"
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if (torch.cuda.is_bf16_supported(False) if cuda else _cpu_has_bfloat16()) else "float32"
    compile_ = settings.compile
    if compile_ == "graphs" and not cuda:
        raise TrainingError(
            'train.compile is "graphs", which are of CUDA, and this trains on a CPU; set "on" or "auto"'
        )
    if compile_ in ("on", "graphs") and not cuda and not _can_compile():
        raise TrainingError(
            f'train.compile is "{compile_}", and torch finds no C++ compiler or no Python.h here; install g++ and '
            'Python\'s headers, or set "auto"'
        )
    if compile_ == "auto":
        work = 6.0 * parameters * settings.steps * settings.batch_size * context / settings.processes
        pays = work > (_COMPILING_PAYS_CUDA if cuda else _COMPILING_PAYS)
        compile_ = "on" if pays and (cuda or _can_compile()) else "off"
    name = f"cuda ({torch.cuda.get_device_name(device)})" if cuda else "cpu"
    return Numerics(name, dtype, compile_)


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; elsewhere it is emulated, and slower than float32."""
    if platform.system() != "Linux":
        return False
    flags = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is Arm's
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            return not flags.isdisjoint(line.split())
    return False


def _can_compile() -> bool:
    compiler = os.environ.get("CXX") or "g++"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return shutil.which(compiler) is not None and header.is_file()


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 operations per second of the GPU by its data sheet; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def memory_mb(device: torch.device) -> float:
    """The most memory used so far, in MB: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
