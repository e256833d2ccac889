"""The hardware: resolves "auto" in device, dtype and compile; peak speed and memory."""

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
from qalam_core.recipe import Optimisation

# Compiling takes 20 to 30 s on two cores and saves an eighth of each step (benchmarks/RESULTS.md), so it pays for runs
# of more than about 250 s; eager training does about 3e11 operations a second there. The GPU's figure is a guess.
_COMPILING_PAYS = 8e13
_COMPILING_PAYS_CUDA = 1e16

# Dense bfloat16 FLOP/s from the manufacturers' data sheets, by a part of the device's name.
_PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A10G": 70e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


@dataclass(frozen=True)
class Numerics:
    """The settings that the last bits of a result depend on, with every "auto" resolved."""

    device: str  # torch's device type, and a GPU's name
    dtype: str
    compile: str


def choose_device(requested: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`. Raises TrainingError when there is no GPU for `cuda`."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise TrainingError("train.device is cuda, and torch sees no GPU here; set train.device to auto or cpu")
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")


def choose_numerics(settings: Optimisation, device: torch.device, parameters: int, context: int) -> Numerics:
    """The dtype and whether to compile: a function of the recipe and the kind of machine alone, never of timings.

    Raises TrainingError when the recipe requires compilation and the machine cannot compile.
    """
    cuda = device.type == "cuda"
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if (torch.cuda.is_bf16_supported(False) if cuda else _cpu_has_bfloat16()) else "float32"
    compile_ = settings.compile
    if compile_ == "on" and not cuda and not _can_compile():
        raise TrainingError(
            'train.compile is "on", and torch finds no C++ compiler or no Python.h here; install g++ and '
            'Python\'s headers, or set "auto"'
        )
    if compile_ == "auto":
        work = 6.0 * parameters * settings.steps * settings.batch_size * context / settings.processes
        pays = work > (_COMPILING_PAYS_CUDA if cuda else _COMPILING_PAYS)
        compile_ = "on" if pays and (cuda or _can_compile()) else "off"
    name = f"cuda ({torch.cuda.get_device_name(device)})" if cuda else "cpu"
    return Numerics(name, dtype, compile_)


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU has bfloat16 instructions; without them it is emulated, and slower than float32."""
    if platform.system() != "Linux":
        return False
    flags = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return not flags.isdisjoint(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


def _can_compile() -> bool:
    compiler = os.environ.get("CXX") or "g++"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return shutil.which(compiler) is not None and header.is_file()


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of the GPU by its data sheet; None where that is not known."""
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
