"""What there is to know, as plain data: probes.py finds it out, findings.py judges it."""

from dataclasses import dataclass, field

# Values of CUDA_VISIBLE_DEVICES that say: use no GPU.
HIDE_ALL = ("", "-1")


@dataclass(frozen=True)
class Gpu:
    name: str
    compute_capability: str | None  # such as "9.0"; None: unknown
    device: str | None  # such as "cuda:0"; None: PyTorch does not see it


@dataclass(frozen=True)
class Check:
    """Of a convolution and its gradients on one device, in one dtype."""

    device: str
    dtype: str
    problem: str | None  # None: all of them are right
    # Relative, of each result; None: Inf or NaN.
    errors: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """None where something is not there, or not known."""

    dwconv: str | None = None
    folder: str | None = None
    unmet: str | None = None  # why dwconv cannot be imported: a sentence
    build: dict[str, str] | None = None  # see dwconv/_C.pyi
    python: str | None = None
    system: str | None = None
    torch: str | None = None
    torch_cuda: str | None = None  # the CUDA that PyTorch was built with
    torch_hip: str | None = None
    driver: str | None = None
    driver_cuda: str | None = None  # the newest that the driver knows
    driver_failure: str | None = None  # why nvidia-smi failed
    cuda_visible_devices: str | None = None
    cuda_failure: str | None = None  # why PyTorch cannot use CUDA
    gpus: tuple[Gpu, ...] = ()
    checks: tuple[Check, ...] = ()
    failed_probes: tuple[str, ...] = ()

    @property
    def hides_gpus(self) -> bool:
        return self.cuda_visible_devices in HIDE_ALL
