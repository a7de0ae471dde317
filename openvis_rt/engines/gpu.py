"""Which GPU is here, asked of the driver without making a context on it."""

from __future__ import annotations

import ctypes

__all__ = ["driver_cuda_version", "gpu_of_this_machine"]

_SUCCESS = 0
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def gpu_of_this_machine() -> tuple[str, str] | None:
    """The first GPU's name and compute capability, such as ``("Orin", "sm87")``; None without one.

    ``CUDA_VISIBLE_DEVICES`` decides which GPU is the first.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, count, number = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if driver.cuInit(0) != _SUCCESS or driver.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS:
        return None
    if count.value == 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != _SUCCESS:
        return None
    digits = ""
    for attribute in (_MAJOR, _MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != _SUCCESS:
            return None
        digits += str(number.value)
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode(errors="replace"), f"sm{digits}"


def driver_cuda_version() -> str | None:
    """The newest CUDA that the driver here serves, such as ``12.6``; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != _SUCCESS:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
