"""python -m dwconv doctor: what it makes of facts, and how it says so."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from dwconv.__main__ import main
from dwconv.doctor import check as checks
from dwconv.doctor import command
from dwconv.doctor.code import UNKNOWN, code_for
from dwconv.doctor.facts import Check, Facts, Gpu
from dwconv.doctor.findings import findings, notes
from dwconv.doctor.report import as_json, text

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()

BUILD = {
    "commit": "4f0d2c7b9e15a86d3c41f7e20b8a95d6c3e1f074",
    "nvcc": "13.0.88",
    "architectures": "8.0+PTX 9.0",
    "torch_headers": "2.13.0+cpu",
    "torch_target": "2.10",
}
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "cuda:0")
ALL_RIGHT = tuple(
    Check(device, dtype, None, {"output": 1e-7})
    for device in ("cpu", "cuda:0")
    for dtype in checks.DTYPES
)
WELL = Facts(
    dwconv="0.1.0",
    folder="/home/me/.venv/lib/python3.12/site-packages/dwconv",
    build=BUILD,
    python="3.12.3",
    system="Linux 6.8.0-48-generic, x86_64, glibc 2.39",
    torch="2.13.0+cu130",
    torch_cuda="13.0",
    driver="580.65.06",
    driver_cuda="13.0",
    gpus=(H100,),
    checks=ALL_RIGHT,
)
CPU_ONLY = replace(
    WELL, torch="2.13.0+cpu", torch_cuda=None, driver=None, driver_cuda=None, gpus=(),
    checks=ALL_RIGHT[:2],
)  # fmt: skip

# By PyTorch.
UNSEEN = replace(WELL, gpus=(replace(H100, device=None),), checks=ALL_RIGHT[:2])


def wrong(device: str, problem: str = "no kernel image is available") -> tuple[Check, ...]:
    return tuple(replace(c, problem=problem) if c.device == device else c for c in ALL_RIGHT)


def with_gpu(name: str, compute_capability: str | None, device: str | None = "cuda:0") -> Facts:
    """And what torch sees of it goes wrong."""
    gpu = Gpu(name, compute_capability, device)
    return replace(WELL, gpus=(gpu,), checks=wrong("cuda:0") if device else ALL_RIGHT[:2])


# What is there, and what its one sentence has to name.
PROBLEMS: dict[str, tuple[Facts, list[str]]] = {
    "dwconv cannot be imported": (
        replace(WELL, unmet="dwconv needs more", build=None, checks=()),
        ["dwconv needs more"],
    ),
    "PyTorch without CUDA": (
        replace(CPU_ONLY, driver="580.65.06", gpus=(replace(H100, device=None),)),
        ["2.13.0+cpu is built without CUDA", H100.name, "install a build for CUDA", "https://"],
    ),
    "PyTorch for AMD": (
        replace(CPU_ONLY, torch="2.13.0+rocm7.2", torch_hip="7.2"),
        ["2.13.0+rocm7.2 is built for AMD GPUs", "install a build for CUDA"],
    ),
    "driver too old": (
        replace(WELL, driver="570.86.15", driver_cuda="12.8", checks=wrong("cuda:0")),
        ["570.86.15", "CUDA 12.8", "need CUDA 13", "install driver 580 or newer"],
    ),
    "driver too old, its CUDA unknown": (
        replace(WELL, driver="570.86.15", driver_cuda=None, checks=wrong("cuda:0")),
        ["570.86.15 is too old", "install driver 580 or newer"],
    ),
    "driver too old for torch also": (
        replace(
            WELL,
            gpus=(),
            driver=None,
            driver_cuda="12.8",
            cuda_failure="The NVIDIA driver on your system is too old (found version 12080)",
        ),
        ["driver here, which knows CUDA 12.8, is too old", "install driver 580 or newer"],
    ),
    "nvidia-smi fails": (
        replace(CPU_ONLY, driver_failure="Driver/library version mismatch"),
        ["nvidia-smi fails (Driver/library version mismatch)", "restart the machine"],
    ),
    "PyTorch cannot use CUDA": (
        replace(UNSEEN, cuda_failure="system not yet initialized"),
        ["PyTorch cannot use the GPU (system not yet initialized)", "repair that first"],
    ),
    "GPUs hidden by mistake": (
        replace(UNSEEN, cuda_failure="No CUDA GPUs are available", cuda_visible_devices="7"),
        ["PyTorch cannot use the GPU", "CUDA_VISIBLE_DEVICES is '7', unset it"],
    ),
    "GPU older than CUDA 13 knows": (
        with_gpu("Tesla V100-SXM2-16GB", "7.0"),
        ["Tesla V100-SXM2-16GB (cuda:0)", "capability 7.0", "7.5 and newer", "use a newer GPU"],
    ),
    "GPU that the wheel has nothing for": (
        with_gpu("Tesla T4", "7.5"),
        ["Tesla T4 (cuda:0)", "capability 7.5", "8.0+PTX 9.0", 'TORCH_CUDA_ARCH_LIST="7.5"'],
    ),
    "the same, not seen by PyTorch": (
        replace(with_gpu("Tesla T4", "7.5", None), torch=None, torch_cuda=None),
        ["The Tesla T4 has compute capability 7.5", "8.0+PTX 9.0"],
    ),
    "wrong result on the CPU": (
        replace(WELL, checks=(replace(ALL_RIGHT[0], problem="off by one"), *ALL_RIGHT[1:])),
        ["float32 on cpu", "(off by one)", "report it"],
    ),
    "wrong result on a GPU": (
        replace(WELL, checks=(*ALL_RIGHT[:3], replace(ALL_RIGHT[3], problem="off by one"))),
        ["float16 on cuda:0", "(off by one)", "report it"],
    ),
    "a GPU of unknown kind": (
        replace(with_gpu("GPU", None), checks=(*ALL_RIGHT[:2], wrong("cuda:0")[2])),
        ["float32 on cuda:0", "(no kernel image is available)"],
    ),
    "a probe that fails": (
        replace(WELL, failed_probes=("what PyTorch is (it was there a minute ago)",)),
        ["cannot tell what PyTorch is (it was there a minute ago)", "report it"],
    ),
}


@pytest.mark.parametrize(("facts", "named"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_one_sentence(facts: Facts, named: list[str]) -> None:
    """It names what is wrong and what to do, and what follows from it is not told as well."""
    (sentence,) = findings(facts)
    assert [words for words in named if words not in sentence] == []
    assert "\n" not in sentence
    assert not sentence.endswith(".")
    assert f"1 problem:\n- {sentence}." in text(facts)


# What is there, and what is to be noted.
NO_PROBLEM: dict[str, tuple[Facts, str | None]] = {
    "all is well": (WELL, None),
    "no GPU": (CPU_ONLY, "There is no NVIDIA GPU here"),
    "no GPU, torch for CUDA": (
        replace(CPU_ONLY, torch_cuda="13.0", cuda_failure="Found no NVIDIA driver on your"),
        "There is no NVIDIA GPU here",
    ),
    "a driver of old, and no GPU": (
        replace(
            CPU_ONLY,
            torch_cuda="13.0",
            driver_cuda="12.4",
            cuda_failure="No CUDA GPUs are available",
        ),
        "There is no NVIDIA GPU here",
    ),
    "GPUs hidden": (
        replace(CPU_ONLY, cuda_visible_devices="", driver="470.1", driver_failure="none"),
        "CUDA_VISIBLE_DEVICES is '', which hides all GPUs",
    ),
    "nvidia-smi fails and PyTorch works": (replace(WELL, driver_failure="NVML"), None),
    "an old kernel module under a newer library": (replace(WELL, driver="535.1"), None),
    "architectures by name": (
        replace(WELL, build={**BUILD, "architectures": "Hopper"}),
        None,
    ),
}


@pytest.mark.parametrize(("facts", "note"), NO_PROBLEM.values(), ids=NO_PROBLEM)
def test_what_is_no_problem(facts: Facts, note: str | None) -> None:
    assert findings(facts) == []
    assert [n[: len(note or "")] for n in notes(facts)] == ([note] if note else [])
    assert "No problem found." in text(facts)


def test_built_without_cuda() -> None:
    """No problem where there is no GPU."""
    facts = replace(WELL, build={**BUILD, "nvcc": "none", "architectures": "none"})
    (of_gpu,) = findings(facts)
    assert of_gpu.startswith(
        f"The {H100.name} (cuda:0) is not used, for this dwconv is built without"
    )
    assert findings(replace(facts, gpus=())) == []
    assert "built       without CUDA, with PyTorch" in text(facts)


def test_each_gpu_is_judged() -> None:
    """One that works does not hide another."""
    gpus = (H100, Gpu("Tesla T4", "7.5", "cuda:1"), Gpu("Tesla V100", "7.0", "cuda:2"))
    of_t4, of_v100 = findings(replace(WELL, gpus=gpus))
    assert "Tesla T4 (cuda:1)" in of_t4
    assert of_t4.endswith('TORCH_CUDA_ARCH_LIST="7.5 9.0"')
    assert "Tesla V100 (cuda:2)" in of_v100
    assert "2 problems:\n" in text(replace(WELL, gpus=gpus))


@pytest.mark.parametrize(
    ("architectures", "compute_capability", "code"),
    [
        ("9.0", "9.0", "machine code for 9.0"),
        ("8.0 8.6", "8.6", "machine code for 8.6"),
        ("8.0 8.6", "8.9", "machine code for 8.6"),
        ("8.0;9.0", "8.9", "machine code for 8.0"),
        ("8.6", "8.0", None),
        ("8.0", "9.0", None),
        ("10.0", "9.0", None),
        ("9.0", "12.0", None),
        ("8.0+PTX 9.0", "12.0", "PTX for 8.0"),
        ("8.0+PTX 9.0+PTX", "12.0", "PTX for 9.0"),
        ("8.0+PTX", "8.6", "machine code for 8.0"),
        ("8.0+PTX", "7.5", None),
        ("12.0+PTX", "12.1", "machine code for 12.0"),
        ("9.0a+PTX", "9.0", "machine code for 9.0a"),
        ("9.0a+PTX", "10.0", None),
        ("10.0a", "10.3", None),
        ("10.0f", "10.3", "machine code for 10.0f"),
        ("10.0f+PTX", "12.0", None),
        ("Hopper", "9.0", UNKNOWN),
        ("Hopper 8.0", "8.6", "machine code for 8.0"),
        ("", "9.0", UNKNOWN),
        ("none", "9.0", None),
        ("9.0", "[N/A]", UNKNOWN),
    ],
)
def test_code(architectures: str, compute_capability: str, code: str | None) -> None:
    """Machine code for its major version, not newer; else PTX that is not newer; else none."""
    assert code_for(architectures, compute_capability) == code


def test_text_is_what_the_readme_shows() -> None:
    assert f"```console\n$ python -m dwconv doctor\n{text(WELL)}\n```" in README


def test_text_is_short_and_aligned() -> None:
    lines = text(replace(WELL, cuda_visible_devices="0")).splitlines()
    facts = lines[: lines.index("")]
    assert all(re.fullmatch(r"\S+ +\S.*", line) and line[11] == " " != line[12] for line in facts)
    assert max(map(len, lines)) <= 100


def test_text_of_nothing() -> None:
    """As if no probe had come to an end."""
    assert "PyTorch     none\n" in text(Facts())


def test_json() -> None:
    """All facts, each GPU's code, and what they mean."""
    document = json.loads(as_json(replace(WELL, gpus=(H100, Gpu("Tesla T4", "7.5", "cuda:1")))))
    assert document.keys() == {"schema", "findings", "notes"} | {f.name for f in fields(Facts)}
    assert document["schema"] == 1
    assert document["build"]["nvcc"] == "13.0.88"
    assert [gpu["code"] for gpu in document["gpus"]] == ["machine code for 9.0", None]
    assert document["gpus"][0].keys() == {"name", "compute_capability", "device", "code"}
    assert document["checks"][0] == {
        "device": "cpu", "dtype": "float32", "problem": None, "errors": {"output": 1e-7},
    }  # fmt: skip
    assert len(document["findings"]) == 1
    assert document["notes"] == []


@pytest.mark.parametrize(("facts", "status"), [(WELL, 0), (PROBLEMS["driver too old"][0], 1)])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_exit_status(
    facts: Facts,
    status: int,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "collect", lambda: facts)
    assert main(["doctor", *options]) == status
    assert capsys.readouterr().out == f"{as_json(facts) if options else text(facts)}\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--help"])
    shown = capsys.readouterr().out
    assert "what to put into a bug report" in shown
    assert "--json" in shown
