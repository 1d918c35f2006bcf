"""What the README shows is what happens."""

import doctest
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = ("README.md", ".github/CONTRIBUTING.md")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_usage_example_runs_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks("python")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    announced = example.rsplit("# ", 1)[1]
    assert capsys.readouterr().out == announced
    x, layer = names["x"], names["layer"]
    assert isinstance(x, torch.Tensor)
    assert isinstance(layer, torch.nn.Module)
    assert all(tensor.grad is not None for tensor in (x, *layer.parameters()))


def test_sessions_look_as_shown() -> None:
    errors = 0
    for session in blocks("pycon"):
        test = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
        errors += sum(example.exc_msg is not None for example in test.examples)
        assert doctest.DocTestRunner().run(test).failed == 0
    assert errors >= 2


@pytest.mark.parametrize("guide", GUIDES)
def test_make_targets_exist(guide: str) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)\b(?=[`\s])", (ROOT / guide).read_text(), re.M))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"build", "test"} <= named <= targets


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_to_files(guide: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / guide).read_text())
    assert [link for link in links if not (ROOT / guide).parent.joinpath(link).exists()] == []
