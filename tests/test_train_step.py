"""benchmarks/train_step.py: its networks, whole runs with a tiny one, the figures, the chart."""

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
import train_step
import training
from comparison import compare, summarise, table
from networks import VARIANTS, Free, build, depthwise_layers
from replknet import LargeKernel, RepLKNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training_runs import ON_CPU, run, tiny_network

import dwconv
from dwconv.bench.report import SCHEMA, read_json, write_json

__all__ = ["tiny_network"]  # a fixture

measure = functools.partial(run, train_step.main)


class TestRepLKNet:
    @pytest.fixture
    def network(self) -> RepLKNet:
        """31B without its small filters, which are merged into the large ones after training."""
        with torch.device("meta"):
            network = RepLKNet()
        branches = [m for m in network.modules() if isinstance(m, LargeKernel)]
        assert len(branches) == 2 + 2 + 18 + 2
        for branch in branches:
            branch.small = nn.Sequential()
        return network

    def test_is_as_large_as_the_papers(self, network: RepLKNet) -> None:
        """Whose table has 79 M parameters, and 15.3 G multiply-adds for an image of 224 x 224."""
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(79.5e6, rel=1e-3)
        with FlopCounterMode(display=False) as counter:
            scores = network(torch.empty(1, 3, 224, 224, device="meta"))
        assert scores.shape == (1, 1000)
        assert counter.get_total_flops() / 2 == pytest.approx(15.3e9, rel=5e-3)

    def test_stages_halve_the_image(self) -> None:
        network = RepLKNet((7, 5, 3), (4, 8, 12), (1, 2, 1), classes=10)
        layers = [layer.kernel_size for _, layer in depthwise_layers(network)]
        small, down = (5, 5), (3, 3)
        assert layers == [
            *(down, down),
            *((7, 7), small, down),
            *((5, 5), small, (5, 5), small, down),
            *((3, 3), small),
        ]
        assert network.features(torch.randn(2, 3, 64, 32)).shape == (2, 12, 4, 2)


class TestFree:
    @pytest.mark.parametrize("size", [(9, 8), (5, 6)])
    @pytest.mark.parametrize("stride", [1, 2, (2, 3)])
    @pytest.mark.parametrize("padding", [0, 1, (3, 2)])
    @pytest.mark.parametrize("kernel", [1, 3, (2, 4), 5])
    def test_views_have_the_output_size(
        self, kernel: Any, padding: Any, stride: Any, size: tuple[int, int]
    ) -> None:
        layer = nn.Conv2d(4, 4, kernel, stride, padding, groups=4)
        x = torch.randn(2, 4, *size, requires_grad=True)
        view = Free(layer)(x)
        assert view.shape == layer(x).shape
        assert view.data_ptr() == x.data_ptr()
        view.sum().backward()
        assert x.grad is not None

    @pytest.mark.parametrize("padding", ["same", "valid"])
    def test_padding_in_words(self, padding: str) -> None:
        layer = nn.Conv2d(4, 4, (4, 3), padding=padding, dilation=2, groups=4)
        x = torch.randn(2, 4, 9, 8)
        assert Free(layer)(x).shape == layer(x).shape

    def test_channels_last_stays(self) -> None:
        x = torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last)
        view = Free(nn.Conv2d(4, 4, 3, padding=1, groups=4))(x)
        assert view.is_contiguous(memory_format=torch.channels_last)

    def test_refuses_a_channel_multiplier(self) -> None:
        with pytest.raises(ValueError, match="layer must have as many output channels"):
            Free(nn.Conv2d(4, 8, 3, groups=4))


@pytest.mark.usefixtures("tiny_network")
class TestBuild:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_variants_share_weights_but_no_tensors(self, variant: str) -> None:
        stock, network = build("tiny", "stock"), build("tiny", variant)
        parameters = dict(network.named_parameters())
        assert parameters.keys() == dict(stock.named_parameters()).keys()
        for name, parameter in stock.named_parameters():
            assert torch.equal(parameter, parameters[name])
            assert parameter is not parameters[name]

    def test_variants_swap_every_depthwise_layer(self) -> None:
        count = len(depthwise_layers(build("tiny", "stock")))
        converted = [layer for _, layer in depthwise_layers(build("tiny", "converted"))]
        assert count == len(converted) > 0
        assert all(isinstance(layer, dwconv.DepthwiseConv2d) for layer in converted)
        free = build("tiny", "free")
        assert depthwise_layers(free) == []
        assert sum(isinstance(m, Free) for m in free.modules()) == count

    def test_a_layer_that_is_not_converted_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Own(nn.Conv2d):
            pass

        monkeypatch.setitem(networks.NETWORKS, "own", lambda: nn.Sequential(Own(4, 4, 3, groups=4)))
        with pytest.raises(RuntimeError, match="0 is a Own"):
            build("own", "converted")


@pytest.mark.usefixtures("tiny_network")
class TestRun:
    def test_measures_every_variant(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file, picture = tmp_path / "a.json", tmp_path / "a.png"
        status, document = measure(file, *ON_CPU, "--chart", str(picture))
        assert status == 0
        cases = document["cases"]
        assert [case["variant"] for case in cases] == list(VARIANTS)
        for case in cases:
            assert (case["model"], case["dtype"], case["layout"]) == ("tiny", "float32", "nchw")
            assert case["step_ms"] > 0
            assert case["steps"] == 3
            assert case["error"] is None
        # On a CPU both are PyTorch's convolution.
        assert cases[0]["loss"] == pytest.approx(cases[2]["loss"], rel=1e-3)
        assert document["status"] == "complete"
        assert document["command"].startswith("python benchmarks/train_step.py --models tiny ")
        assert document["protocol"]["tf32"] == {"cudnn": False, "matmul": False}
        assert document["summary"]["speedup"]["compiled"].keys() == {"tiny float32 nchw"}
        assert picture.stat().st_size > 1000
        stdout = capsys.readouterr().out
        assert "[5/5] tiny float32 nchw free: " in stdout
        assert "slower: " in stdout

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_trains_in_16_bits(self, dtype: str, tmp_path: Path) -> None:
        variants = ("--variants", "converted,free")
        arguments = ("--device", "cpu", "--dtypes", dtype, "--layouts", "nhwc", *variants)
        status, document = measure(tmp_path / "a.json", *arguments)
        assert status == 0
        assert [case["loss"] > 0 for case in document["cases"]] == [True, True]

    def test_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        file = tmp_path / "a.json"
        arguments = (*ON_CPU, "--variants", "stock,free")
        status, stopped = measure(file, *arguments, "--seconds", "1e-9")
        assert (status, stopped["cases"]) == (0, [])
        assert stopped["status"] == "the time limit was reached"
        measure(file, *ON_CPU, "--variants", "stock", "--resume")
        stock = read_json(file, {})["cases"]
        status, whole = measure(file, *arguments, "--resume")
        assert status == 0
        assert [case["variant"] for case in whole["cases"]] == ["stock", "free"]
        assert whole["cases"][:1] == stock
        assert [r["status"] for r in whole["earlier_runs"]] == [stopped["status"], "complete"]

    def test_resumes_no_other_problem(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "a.json"
        _, before = measure(file, *ON_CPU, "--variants", "free")
        status, after = measure(file, *ON_CPU, "--resume", "--batch", "3")
        assert (status, after) == (2, before)
        assert "measured with batch 2, and this is 3" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory"),
            (RuntimeError("one line\nand another"), "RuntimeError: one line"),
        ],
    )
    def test_what_fails_is_recorded_and_tried_again(
        self, error: Exception, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Failing(nn.Module):
            def __init__(self, layer: nn.Conv2d) -> None:
                super().__init__()

            def forward(self, x: Tensor) -> Tensor:
                raise error

        file, arguments = tmp_path / "a.json", (*ON_CPU, "--variants", "stock,free")
        with monkeypatch.context() as patch:
            patch.setattr(networks, "Free", Failing)
            status, document = measure(file, *arguments)
        assert status == 1
        assert [case["error"] for case in document["cases"]] == [None, text]
        status, document = measure(file, *arguments, "--resume")
        assert status == 0
        assert [case["error"] for case in document["cases"]] == [None, None]

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_measures_memory_on_a_gpu(self, dtype: str, tmp_path: Path) -> None:
        variants = ("--variants", "stock,converted,free")
        status, document = measure(tmp_path / "a.json", "--dtypes", dtype, *variants)
        assert status == 0
        assert len(document["cases"]) == 2 * 3
        assert all(case["peak_mib"] > 0 for case in document["cases"])
        assert document["gpu"] == torch.cuda.get_device_name()


def test_slow_steps_are_timed_less_often() -> None:
    assert training.steps_for(40, 20) == 20
    assert training.steps_for(900, 20) == 5
    assert training.steps_for(9000, 20) == training.SLOW_STEPS
    assert training.steps_for(9000, 1) == 1


def records(**step_ms: float) -> list[dict[str, Any]]:
    """Of one network; stock took 100 ms and 10 MiB if nothing else is said."""
    times = {"stock": 100.0, **step_ms}
    of = {"model": "a", "dtype": "float16", "layout": "nhwc"}
    return [
        {
            **of,
            "variant": variant,
            "step_ms": ms,
            "busy_ms": ms / 2,
            "peak_mib": 10.0,
            "error": None,
        }
        for variant, ms in times.items()
    ]


class TestFigures:
    def test_share_is_of_the_way_to_free(self) -> None:
        (near,) = compare(records(converted=50, free=40))
        assert near.share == pytest.approx(50 / 60)
        (far,) = compare(records(converted=53, free=40))
        assert far.share == pytest.approx(47 / 60)
        assert summarise(records(converted=53, free=40))["below_share"] == ["a float16 nhwc"]
        assert summarise(records(converted=50, free=40))["below_share"] == []

    def test_share_of_the_gpu_is_of_the_time_that_it_is_busy(self) -> None:
        bound_by_the_host = records(converted=98, free=80)
        bound_by_the_host[1]["busy_ms"] = 41.0
        (comparison,) = compare(bound_by_the_host)
        assert comparison.share == pytest.approx(2 / 20)
        assert comparison.share_of_gpu == pytest.approx(9 / 10)
        assert summarise(bound_by_the_host)["share_of_gpu"] == {"a float16 nhwc": 0.9}

    def test_a_short_way_has_no_share(self) -> None:
        (comparison,) = compare(records(converted=99, free=91))
        assert comparison.share is None

    def test_what_is_slower_is_listed(self) -> None:
        assert summarise(records(converted=100.9))["slower"] == []
        compiled = {"stock_compiled": 80.0, "converted_compiled": 81.0}
        found = summarise(records(converted=101.1, **compiled))
        assert found["slower"] == ["a float16 nhwc converted", "a float16 nhwc compiled"]
        assert found["speedup"]["compiled"] == {"a float16 nhwc": 0.9877}

    def test_what_needs_more_memory_is_listed(self) -> None:
        both = records(converted=50)
        assert summarise(both)["more_memory"] == []
        both[1]["peak_mib"] += 0.01
        assert summarise(both)["more_memory"] == ["a float16 nhwc converted"]

    def test_means_are_of_panels_and_of_all(self) -> None:
        two = records(converted=50) + [{**r, "dtype": "float32"} for r in records(converted=12.5)]
        found = summarise(two)
        assert [panel["speedup_converted"] for panel in found["panels"]] == [2, 8]
        assert found["all"]["speedup_converted"] == 4

    def test_a_variant_that_failed_leaves_a_gap(self) -> None:
        failed = {**records()[0], "variant": "converted", "error": "out of memory"}
        del failed["step_ms"], failed["busy_ms"], failed["peak_mib"]
        found = summarise([*records(free=50), failed])
        assert found["all"] == {
            "speedup_converted": None,
            "speedup_compiled": None,
            "speedup_free": 2,
            "least_share": None,
        }
        assert "a float16 nhwc" in table([*records(free=50), failed])


class TestChart:
    def test_is_drawn_from_a_file(self, tmp_path: Path) -> None:
        from matplotlib.image import imread

        file, picture = tmp_path / "a.json", tmp_path / "a.png"
        both = records(converted=50, free=40) + [{**r, "layout": "nchw"} for r in records()]
        document = {"schema": SCHEMA, "script": "train_step.py", "cases": both}
        write_json(file, document)
        script = str(Path(train_step.__file__))
        words = [sys.executable, script, "--from", str(file), "--chart", str(picture)]
        result = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert (result.returncode, result.stderr) == (0, "")
        height, width = imread(picture).shape[:2]
        assert 0 < height < width

    def test_of_other_files_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "a.json"
        arguments = ["--from", str(file), "--chart", str(tmp_path / "a.png")]
        write_json(file, {"schema": SCHEMA, "cases": []})
        assert train_step.main(arguments) == 2
        assert "measured with script None" in capsys.readouterr().err
        document = {"schema": SCHEMA, "script": "train_step.py", "cases": []}
        write_json(file, document)
        assert train_step.main(arguments) == 2
        assert "nothing to draw" in capsys.readouterr().err
        assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "alexnet"], "'alexnet' is unknown; choose from convnext_tiny, "),
        (["--variants", "free,costly"], "'costly' is unknown; choose from stock, "),
        (["--dtypes", "float64"], "'float64' is unknown"),
        (["--batch", "1"], "'1' is not a count of 2 or more"),
        (["--size", "8"], "'8' is not a count of 32 or more"),
        (["--seconds", "0"], "'0' is not a positive number of seconds"),
        (["--json", "nowhere/a.json"], "is not a file in a folder that can be written"),
        (["--resume"], "--resume needs --json"),
        (["--from", "a.json"], "--from needs --chart"),
        (["--from", "a.json", "--chart", "a.png"], "a.json is not a file"),
    ],
)
def test_refuses_what_cannot_run(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        train_step.main(["--device", "cpu", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_says_what_needs_timm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "timm" else find(n))
    with pytest.raises(SystemExit):
        train_step.main(["--device", "cpu", "--models", "mobilenetv2_100,replknet_31b"])
    error = capsys.readouterr().err
    assert "timm, which builds mobilenetv2_100, is not installed: pip install timm" in error
    assert networks.unavailable(["replknet_31b"]) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_step.main(["--device", "cuda"])
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
