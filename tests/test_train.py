"""examples/train.py, run as a user runs it."""

import importlib
import subprocess
import sys
import weakref
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

for requirement in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(requirement)

TRAIN = Path(__file__).resolve().parents[1] / "examples" / "train.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LAYERS = ["dwconv.DepthwiseConv2d", "torch.nn.Conv2d"]
EPOCHS = 2
BATCHES = 2 * 22
# Losses, between 0.3 and 3, of two runs that sum in another order. Measured: 4e-7 for two processes
# against one, 3e-7 for a convolution in float64 against one in float32, after 15 epochs too.
ROUNDING = 1e-5


def run(folder: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """The exit status, stdout and stderr; what the example writes goes to folder/out."""
    result = subprocess.run(
        [sys.executable, *launcher, str(TRAIN), "--epochs", str(EPOCHS), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return result.returncode, result.stdout, result.stderr


def losses(folder: Path) -> numpy.ndarray:
    path = folder / "out" / "loss.csv"
    assert path.read_text().splitlines()[0].split(",") == LAYERS
    return numpy.loadtxt(path, delimiter=",", skiprows=1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """One process on the CPU, asked for more accuracy than two epochs can give."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, *run(folder, "--device", "cpu", "--min-accuracy", "1")


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module."""
    monkeypatch.syspath_prepend(TRAIN.parent)
    return importlib.import_module("train")


def test_too_low_an_accuracy_fails_with_one_sentence(alone: tuple[Path, int, str, str]) -> None:
    _, status, _, stderr = alone
    assert status == 1, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("The accuracy is ")


def test_prints_a_table_and_a_progress_bar(alone: tuple[Path, int, str, str]) -> None:
    _, _, stdout, stderr = alone
    for name in LAYERS:
        assert any(line.startswith(name) and "%" in line for line in stdout.splitlines()), stdout
        assert f"{name}: 100%" in stderr
    assert "largest difference of the two loss curves: " in stdout
    assert "loads back into both networks" in stdout


def test_curves_agree(alone: tuple[Path, int, str, str]) -> None:
    curves = losses(alone[0])
    assert curves.shape == (BATCHES, 2)
    assert curves[-1, 0] < curves[0, 0] / 2
    numpy.testing.assert_allclose(curves[:, 0], curves[:, 1], rtol=0, atol=ROUNDING)


def test_writes_a_picture(alone: tuple[Path, int, str, str]) -> None:
    from matplotlib.image import imread

    height, width = imread(alone[0] / "out" / "loss.png").shape[:2]
    assert (height, width) == (900, 1200)


def test_checkpoint_loads_into_both_networks(
    alone: tuple[Path, int, str, str], train: ModuleType
) -> None:
    weights = torch.load(alone[0] / "out" / "digits.pt", weights_only=True)
    _, held_out = train.digits.load(torch.device("cpu"))
    accuracies = set()
    for layer in train.LAYERS.values():
        network = train.build_network(layer)
        network.load_state_dict(weights)
        accuracies.add(held_out.accuracy(network))
    assert len(accuracies) == 1
    assert f"{accuracies.pop():.2%}" in alone[2]


def test_two_processes_compute_what_one_does(
    alone: tuple[Path, int, str, str], tmp_path: Path
) -> None:
    status, stdout, stderr = run(
        tmp_path, "--device", "cpu", "--min-accuracy", "0.8", launcher=TORCHRUN
    )
    assert status == 0, stderr
    assert stdout.count("largest difference") == 1, "only one process prints"
    numpy.testing.assert_allclose(losses(tmp_path), losses(alone[0]), rtol=0, atol=ROUNDING)


def test_frees_its_process_group(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group's threads end with it. One that outlived the interpreter would abort the process."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # port 0: any that is free
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with train.join_processes("cpu"):
        group = weakref.ref(dist.group.WORLD)
        DistributedDataParallel(torch.nn.Linear(1, 1))
    assert group() is None


@pytest.mark.gpu
def test_gpu_computes_what_the_cpu_does(alone: tuple[Path, int, str, str], tmp_path: Path) -> None:
    status, stdout, stderr = run(tmp_path, "--min-accuracy", "0.8")
    assert status == 0, stderr
    assert "cuda" in stdout
    curves = losses(tmp_path)
    numpy.testing.assert_allclose(curves[:, 0], curves[:, 1], rtol=0, atol=ROUNDING)
    numpy.testing.assert_allclose(curves, losses(alone[0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--batch-size", "0"),
        ("--batch-size", "1438"),
        ("--lr", "0.0"),
        ("--min-accuracy", "97.0"),
    ],
)
def test_refuses_what_cannot_run(
    option: str, value: str, train: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        train.main(["--device", "cpu", option, value])
    assert error.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert option in message
    assert message.endswith(f"got {value}")
