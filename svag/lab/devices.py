"""Devices by name: ``cpu``, ``cuda``, or ``auto`` for the one that is available."""

import torch

from svag.errors import InvalidOption


def device_named(name: str) -> str:
    """Return the name of an available device; for ``auto`` it is cuda if available, else cpu.

    Raises:
        InvalidOption: the name is of no device, or this machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device_of(name)
    return name


def device_of(name: str) -> torch.device:
    """Return an available device.

    Raises:
        InvalidOption: the name is of no device, or this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InvalidOption(
            f"device {name!r} is not available on this machine; choose cpu, or auto"
        ) from None
    return device
