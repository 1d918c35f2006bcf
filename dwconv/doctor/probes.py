"""Finds out the facts."""

import contextlib
import os
import platform
import sys
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import dwconv
from dwconv import driver
from dwconv.doctor.check import DTYPES, check
from dwconv.doctor.facts import Facts, Gpu
from dwconv.requirements import FOLDER, first_line


def collect() -> Facts:
    """Never raises: a probe that fails is one fact more."""
    facts = Facts()
    for what, probe in PROBES.items():
        try:
            facts = replace(facts, **probe(facts))
        except Exception as error:
            failed = f"{what} ({first_line(error)})"
            facts = replace(facts, failed_probes=(*facts.failed_probes, failed))
    return facts


# Each gets the facts so far, and returns more of them.


def _system(facts: Facts) -> dict[str, Any]:
    library = " ".join(platform.libc_ver())
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, {library}",
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _dwconv(facts: Facts) -> dict[str, Any]:
    unmet = dwconv._unmet
    return {
        "folder": str(FOLDER),
        "dwconv": _version_of("dwconv"),
        "unmet": None if unmet is None else str(unmet),
    }


def _build(facts: Facts) -> dict[str, Any]:
    if facts.unmet is not None:
        return {}
    from dwconv import _ops

    return {"build": _ops.build_info()}


def _torch(facts: Facts) -> dict[str, Any]:
    """The one that is loaded, or else the one that is installed and does not load."""
    torch = sys.modules.get("torch")
    stated = getattr(torch, "__version__", None)
    built = getattr(torch, "version", None)
    return {
        "torch": _version_of("torch") if stated is None else str(stated),
        "torch_cuda": getattr(built, "cuda", None),
        "torch_hip": getattr(built, "hip", None),
    }


def _torch_gpus(facts: Facts) -> dict[str, Any]:
    if facts.torch_cuda is None or facts.hides_gpus:
        return {}
    torch: Any = sys.modules["torch"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they say what the exception does
        try:
            torch.cuda.init()
        except Exception as error:
            return {"cuda_failure": first_line(error)}
        gpus = [
            (index, torch.cuda.get_device_properties(index))
            for index in range(torch.cuda.device_count())
        ]
    return {
        "gpus": tuple(
            Gpu(gpu.name, f"{gpu.major}.{gpu.minor}", f"cuda:{index}") for index, gpu in gpus
        )
    }


def _driver(facts: Facts) -> dict[str, Any]:
    """And the GPUs that it knows, where PyTorch uses none."""
    try:
        rows = driver.nvidia_smi("driver_version", "name")
    except RuntimeError as error:
        return {"driver_failure": first_line(error)}
    if not rows:
        return {}
    found: dict[str, Any] = {"driver": rows[0][0]}
    if not facts.gpus and not facts.hides_gpus:
        capabilities: list[str | None] = [None] * len(rows)
        with contextlib.suppress(RuntimeError):  # an old driver does not know the word
            capabilities = [row[0] for row in driver.nvidia_smi("compute_cap")]
        found["gpus"] = tuple(
            Gpu(row[1], capability, None)
            for row, capability in zip(rows, capabilities, strict=True)
        )
    return found


def _driver_cuda(facts: Facts) -> dict[str, Any]:
    return {"driver_cuda": driver.cuda_version()}


def _checks(facts: Facts) -> dict[str, Any]:
    if facts.unmet is not None:
        return {}
    devices = ["cpu", *(gpu.device for gpu in facts.gpus if gpu.device)]
    return {"checks": tuple(check(device, dtype) for device in devices for dtype in DTYPES)}


PROBES = {
    "what the system is": _system,
    "what dwconv is": _dwconv,
    "what dwconv was built with": _build,
    "what PyTorch is": _torch,
    "which GPUs PyTorch sees": _torch_gpus,
    "what the driver is": _driver,
    "which CUDA the driver knows": _driver_cuda,
    "whether results are right": _checks,
}


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
