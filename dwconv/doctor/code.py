"""Which code for GPUs a list of architectures means, and which GPUs run it.

The list is torch's TORCH_CUDA_ARCH_LIST, as in "7.5 8.0 12.0+PTX": machine code for each entry, and
with +PTX also an intermediate code that the driver translates.
"""

import re

from dwconv.requirements import numbers

# Of a GPU, when the list does not tell: it may say "Hopper", for one.
UNKNOWN = "unknown"
WITHOUT_CUDA = "none"  # the list of a build for CPU tensors alone


def code_for(architectures: str, compute_capability: str) -> str | None:
    """The code that such a GPU runs, in words; None if there is none.

    Machine code runs on GPUs of its major version that are not older, PTX on all that are not
    older. What ends in a letter is for one GPU (a) or one major version (f).
    """
    gpu = numbers(compute_capability)
    if architectures == WITHOUT_CUDA:
        return None
    if gpu is None:
        return UNKNOWN
    machine, ptx, unread = [], [], False
    for entry in re.split(r"[\s;]+", architectures.strip()):
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if parts is None:
            unread = True
            continue
        version, letter = (int(parts[1]), int(parts[2])), parts[3]
        if version > gpu or (letter == "a" and version != gpu):
            continue
        same_major = version[0] == gpu[0]
        if same_major:
            machine.append((version, letter))
        if parts[4] and (same_major or not letter):
            ptx.append((version, letter))
    for kind, found in (("machine code", machine), ("PTX", ptx)):
        if found:
            (major, minor), letter = max(found)
            return f"{kind} for {major}.{minor}{letter}"
    return UNKNOWN if unread else None
