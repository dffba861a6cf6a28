"""Devices by name: ``cpu``, ``cuda``, or whichever of them is there."""

import torch

from svag.errors import InvalidOption


def device_named(name: str) -> str:
    """Return the name of a device that is there; for ``auto`` that is cuda if it can be.

    Raises:
        InvalidOption: it is none, or this machine has none of its kind.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device_of(name)
    return name


def device_of(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        InvalidOption: it is none, or this machine has none of its kind.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InvalidOption(
            f"device {name!r} is not to be had on this machine; choose cpu, or auto"
        ) from None
    return device
