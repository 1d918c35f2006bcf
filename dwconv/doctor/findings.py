"""What the facts mean: a sentence for each problem, with its cure."""

from collections.abc import Iterator

from dwconv.doctor.code import WITHOUT_CUDA, code_for
from dwconv.doctor.facts import Facts, Gpu
from dwconv.requirements import CUDA, OLDEST_DRIVER, OLDEST_GPU, numbers

# What torch says on a machine that has no GPU.
NO_GPU = ("Found no NVIDIA driver", "No CUDA GPUs are available")


def findings(facts: Facts) -> list[str]:
    """The problems."""
    found = list(_of_software(facts)) + list(_of_driver(facts))
    for gpu in facts.gpus:
        of_gpu = _of_gpu(facts, gpu)
        if of_gpu is not None:
            found.append(of_gpu)
        elif not _too_old(facts):  # else it is clear why nothing runs
            found += _of_checks(facts, gpu.device)
    found += _of_checks(facts, "cpu")
    for probe in facts.failed_probes:
        found.append(f"python -m dwconv doctor cannot tell {probe}: please report it")
    return found


def notes(facts: Facts) -> list[str]:
    """What is no problem, and worth knowing."""
    if facts.hides_gpus:
        return [
            f"CUDA_VISIBLE_DEVICES is {facts.cuda_visible_devices!r}, which hides all GPUs: "
            "PyTorch's own convolution runs, on the CPU"
        ]
    if not facts.gpus and not findings(facts):
        return ["There is no NVIDIA GPU here: PyTorch's own convolution runs, on the CPU"]
    return []


def _of_software(facts: Facts) -> Iterator[str]:
    if facts.unmet is not None:
        yield facts.unmet
    if facts.torch is None or facts.torch_cuda is not None:
        return
    if facts.torch_hip is not None:
        yield (
            f"PyTorch {facts.torch} is built for AMD GPUs, for which dwconv has no kernels: "
            "install a build for CUDA, on a machine with an NVIDIA GPU"
        )
    elif facts.gpus:
        yield (
            f"PyTorch {facts.torch} is built without CUDA and cannot use the {facts.gpus[0].name} "
            "here: install a build for CUDA, see https://pytorch.org/get-started/locally"
        )


def _of_driver(facts: Facts) -> Iterator[str]:
    if facts.hides_gpus:
        return
    if facts.driver_failure is not None and not any(gpu.device for gpu in facts.gpus):
        yield (
            f"nvidia-smi fails ({facts.driver_failure}): restart the machine if its driver was "
            "just updated, else install the driver again"
        )
    elif not facts.gpus and (facts.cuda_failure or NO_GPU[0]).startswith(NO_GPU):
        return
    elif _too_old(facts):
        known = f", which knows CUDA {facts.driver_cuda}," if facts.driver_cuda else ""
        yield (
            f"The NVIDIA driver {facts.driver or 'here'}{known} is too old for dwconv's kernels, "
            f"which need CUDA {CUDA}: install driver {OLDEST_DRIVER} or newer"
        )
    elif facts.cuda_failure is not None:
        cure = "repair that first, `python -c 'import torch; torch.cuda.init()'` shows it"
        if facts.cuda_visible_devices is not None:
            cure = f"CUDA_VISIBLE_DEVICES is {facts.cuda_visible_devices!r}, unset it"
        yield f"PyTorch cannot use the GPU ({facts.cuda_failure}): {cure}"


def _too_old(facts: Facts) -> bool:
    known = numbers(facts.driver_cuda or "")
    if known is not None:
        return known < (CUDA, 0)
    driver = numbers(facts.driver or "")
    return driver is not None and driver < (OLDEST_DRIVER, 0)


def _of_gpu(facts: Facts, gpu: Gpu) -> str | None:
    capability = gpu.compute_capability
    version = numbers(capability or "")
    if capability is None or version is None:
        return None
    name = f"The {gpu.name}" + (f" ({gpu.device})" if gpu.device else "")
    if version < OLDEST_GPU:
        return (
            f"{name} has compute capability {capability}, and CUDA {CUDA} compiles for "
            f"{'{}.{}'.format(*OLDEST_GPU)} and newer: use a newer GPU, or nn.Conv2d on this one"
        )
    if facts.build is None:
        return None
    architectures = facts.build["architectures"]
    if code_for(architectures, capability) is not None:
        return None
    if architectures == WITHOUT_CUDA:
        return (
            f"{name} is not used, for this dwconv is built without CUDA: install its wheel, or "
            "build it without DWCONV_CUDA=0"
        )
    return (
        f"{name} has compute capability {capability}, and this dwconv is compiled for "
        f"{architectures}: install it from its sources with "
        f'TORCH_CUDA_ARCH_LIST="{_architectures_here(facts)}"'
    )


def _architectures_here(facts: Facts) -> str:
    """Of all GPUs that dwconv can be compiled for."""
    known = {numbers(gpu.compute_capability or "") for gpu in facts.gpus}
    return " ".join("{}.{}".format(*v) for v in sorted(v for v in known if v and v >= OLDEST_GPU))


def _of_checks(facts: Facts, device: str | None) -> Iterator[str]:
    for check in facts.checks:
        if check.device == device and check.problem is not None:
            yield (
                f"A convolution in {check.dtype} on {check.device} goes wrong ({check.problem}): "
                "please report it, with all of this"
            )
