"""The facts and what they mean, to read and as JSON."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from dwconv.doctor.code import UNKNOWN, WITHOUT_CUDA, code_for
from dwconv.doctor.facts import Facts, Gpu
from dwconv.doctor.findings import findings, notes

SCHEMA = 1
NONE = "none"


def text(facts: Facts) -> str:
    """Aligned lines, then the problems and notes."""
    lines = [f"{name:<12}{value}" for name, value in _rows(facts)]
    found = findings(facts)
    count = {0: "No problem found.", 1: "1 problem:"}.get(len(found), f"{len(found)} problems:")
    told = [f"- {sentence}." for sentence in found]
    noted = [f"Note: {note}." for note in notes(facts)]
    return "\n".join([*lines, "", count, *told, *noted])


def as_json(facts: Facts) -> str:
    """One document: the facts, with each GPU's code, and what they mean."""
    document: dict[str, Any] = {"schema": SCHEMA, **dataclasses.asdict(facts)}
    for gpu, known in zip(document["gpus"], facts.gpus, strict=True):
        gpu["code"] = _code(facts, known)
    document["findings"] = findings(facts)
    document["notes"] = notes(facts)
    return json.dumps(document, indent=2)


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "dwconv", f"{facts.dwconv or NONE}, in {facts.folder}"
    if facts.build is not None:
        build = facts.build
        yield "commit", build["commit"]
        kernels = f"by nvcc {build['nvcc']} for {build['architectures']}"
        if build["architectures"] == WITHOUT_CUDA:
            kernels = "without CUDA"
        torch = f"with PyTorch {build['torch_headers']} for {build['torch_target']} and newer"
        yield "built", f"{kernels}, {torch}"
    yield "Python", facts.python or UNKNOWN
    yield "system", facts.system or UNKNOWN
    torch = facts.torch or NONE
    if facts.torch is not None:
        built_for = f"ROCm {facts.torch_hip}" if facts.torch_hip else "without CUDA"
        torch += f", CUDA {facts.torch_cuda}" if facts.torch_cuda else f", {built_for}"
    yield "PyTorch", torch
    known = f", CUDA {facts.driver_cuda}" if facts.driver_cuda else ""
    yield "driver", (facts.driver or (UNKNOWN if known else NONE)) + known
    if facts.cuda_visible_devices is not None:
        yield "visible", f"CUDA_VISIBLE_DEVICES={facts.cuda_visible_devices}"
    for gpu in facts.gpus:
        code = _code(facts, gpu) or "no code"
        yield gpu.device or "GPU", f"{gpu.name}, {gpu.compute_capability or UNKNOWN}: {code}"
    if not facts.gpus:
        yield "GPU", NONE
    yield "operators", "loaded" if facts.unmet is None else "not loaded"
    for check in facts.checks:
        state = "right" if check.problem is None else "WRONG"
        yield "check", f"{check.dtype} on {check.device}: {state}"


def _code(facts: Facts, gpu: Gpu) -> str | None:
    """What this dwconv has for a GPU; None: nothing."""
    if facts.build is None or gpu.compute_capability is None:
        return UNKNOWN
    return code_for(facts.build["architectures"], gpu.compute_capability)
