"""What this machine is: GPUs, driver, and the Python that a wheelhouse was packed for.

Asked of the driver itself (libcuda), which is there wherever a GPU can be used, Jetson included.
Only the standard library: this file travels beside the pieces.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

from pieces import PackError

NEEDED_CUDA = 13000  # that the driver must know: the wheels of the extras are of CUDA 13
NEEDED_DRIVER = "580"  # the first that knows CUDA 13
MAJOR, MINOR, MULTIPROCESSORS = 75, 76, 16  # CU_DEVICE_ATTRIBUTE_*
CLOCK, MEMORY_CLOCK, BUS_WIDTH, L2 = 13, 36, 37, 38
ASK = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2], sysconfig.get_path('purelib'))"


class NoGpu(PackError):
    """No GPU that can be used; the text says what is missing."""


def describe_machine() -> dict[str, Any]:
    """Processor and system, GPU or not."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def find_gpus() -> list[dict[str, Any]]:
    """Every GPU that the driver offers; NoGpu says what is missing where there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoGpu("no NVIDIA driver: libcuda.so.1 cannot be loaded") from None
    if (error := cuda.cuInit(0)) != 0:
        raise NoGpu(f"no NVIDIA GPU can be used: cuInit answers error {error}")
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        raise NoGpu("the NVIDIA driver is there, and no GPU that it offers")
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    if version.value < NEEDED_CUDA:
        raise NoGpu(
            f"the NVIDIA driver {driver_version() or ''} is too old: it knows CUDA "
            f"{cuda_text(version.value)}, and {cuda_text(NEEDED_CUDA)} is needed; install driver "
            f"{NEEDED_DRIVER} or newer"
        )
    return [_gpu(cuda, number, version.value) for number in range(count.value)]


def cuda_text(version: int) -> str:
    """13020 -> "13.2"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _gpu(cuda: Any, number: int, version: int) -> dict[str, Any]:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), number)
    name = ctypes.create_string_buffer(128)
    cuda.cuDeviceGetName(name, 128, device)
    memory = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(code: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), code, device)
        return value.value

    return {
        "name": name.value.decode(),
        "sm": attribute(MAJOR) * 10 + attribute(MINOR),
        "memory_gb": round(memory.value / 1e9, 1),
        "multiprocessors": attribute(MULTIPROCESSORS),
        "clock_khz": attribute(CLOCK),
        "memory_clock_khz": attribute(MEMORY_CLOCK),
        "bus_bits": attribute(BUS_WIDTH),
        "l2_bytes": attribute(L2),
        "driver": driver_version(),
        "cuda": cuda_text(version),
    }


def driver_version() -> str | None:
    """Of the kernel module, None where it does not say."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read())
    except OSError:
        return None
    return found[1] if found else None


def find_python(wanted: str) -> str:
    """A Python of the version that the wheels are for."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == wanted:
        return sys.executable
    found = shutil.which(f"python{wanted}")
    if found and ask_python(found):
        return found
    raise PackError(
        f"the wheels are for Python {wanted}; this is {platform.python_version()} and the path has "
        f"no python{wanted}: install it, or pack again with "
        f"PYTHON_VERSION={sys.version_info[0]}.{sys.version_info[1]}"
    )


def ask_python(python: str) -> tuple[str, str] | None:
    """Version and folder of packages of another Python, None where it does not run."""
    try:
        done = subprocess.run([python, "-c", ASK], capture_output=True, text=True)
    except OSError:
        return None
    words = done.stdout.split(maxsplit=1)
    return (words[0], words[1].strip()) if done.returncode == 0 and len(words) == 2 else None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
