"""The workflows do what a machine here can do too, with few rights and pinned actions."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from stated import MAKEFILE, PYPROJECT, ROOT

from dwconv.doctor.code import code_for

CIBUILDWHEEL: dict[str, Any] = PYPROJECT["tool"]["cibuildwheel"]
PATHS = sorted(ROOT.glob(".github/workflows/*.yml"))
# BaseLoader: with YAML's types, the key `on` would be True.
WORKFLOWS: dict[str, Any] = {
    path.stem: yaml.load(path.read_text(), yaml.BaseLoader) for path in PATHS
}
JOBS = [(workflow, name) for workflow in WORKFLOWS for name in WORKFLOWS[workflow]["jobs"]]

every_job = pytest.mark.parametrize(("workflow", "name"), JOBS)


def job(workflow: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = WORKFLOWS[workflow]["jobs"][name]
    return found


def steps(workflow: str, name: str, action: str) -> list[dict[str, str]]:
    """What a job's uses of an action are given."""
    used = job(workflow, name).get("steps", [])
    return [step.get("with", {}) for step in used if step.get("uses", "").startswith(f"{action}@")]


def test_workflows_were_read() -> None:
    assert sorted(WORKFLOWS) == ["ci", "publish", "wheels"]


@every_job
def test_commands_are_make_targets_or_scripts(workflow: str, name: str) -> None:
    """So that each can be run anywhere, and none is a template that a pull request fills in."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for step in job(workflow, name).get("steps", []):
        if "run" in step:
            command, *arguments = step["run"].split()
            if command == "make":
                assert arguments
                assert targets.issuperset(arguments)
            else:
                assert (ROOT / command).is_file()
        else:
            assert "uses" in step


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    """With their version beside it; or they are workflows of this tree."""
    pinned = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    uses = re.findall(r"\buses: (.+)", path.read_text())
    assert uses
    for action in uses:
        local = action.startswith("./") and (ROOT / action.split(" #")[0]).is_file()
        assert local or pinned.fullmatch(action)


def test_an_action_has_one_pin() -> None:
    uses = {use for path in PATHS for use in re.findall(r"uses: (\S+)@(.+)", path.read_text())}
    assert len(uses) == len({action for action, _ in uses})


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflows_may_read_and_do_not_pile_up(workflow: str) -> None:
    assert WORKFLOWS[workflow]["permissions"] == {"contents": "read"}
    assert WORKFLOWS[workflow]["concurrency"]["group"].endswith("${{ github.ref }}")


@every_job
def test_jobs_have_no_other_rights_and_end(workflow: str, name: str) -> None:
    """Only the job that publishes asks for a token, and it runs nothing of this repository."""
    found = job(workflow, name)
    publishes = (workflow, name) == ("publish", "publish")
    assert found.get("permissions") == ({"id-token": "write"} if publishes else None)
    assert "secrets" not in found
    assert ("timeout-minutes" in found) == ("runs-on" in found)
    if publishes:
        assert not any("run" in step for step in found["steps"])
        assert steps(workflow, name, "actions/checkout") == []
    for given in steps(workflow, name, "actions/checkout"):
        assert given["persist-credentials"] == "false"


def classified() -> list[str]:
    """The Pythons of the classifiers, as cibuildwheel names them."""
    pattern = r"Programming Language :: Python :: 3\.(\d+)"
    found = (re.fullmatch(pattern, line) for line in PYPROJECT["project"]["classifiers"])
    return [f"cp3{match[1]}" for match in found if match]


def test_wheels_are_for_the_pythons_of_the_classifiers() -> None:
    """On both kinds of machine; `make wheels` alone builds the same."""
    matrix = job("wheels", "wheel")["strategy"]["matrix"]
    assert matrix["python"] == classified()
    assert matrix["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    assert CIBUILDWHEEL["build"] == [f"{python}-*" for python in classified()]
    assert f">=3.{classified()[0][3:]}" == PYPROJECT["project"]["requires-python"]


def test_ci_tests_the_oldest_and_the_newest_python() -> None:
    tested = job("ci", "test")["strategy"]["matrix"]["python"]
    assert [f"cp{python.replace('.', '')}" for python in tested] == [
        classified()[0],
        classified()[-1],
    ]


def test_ci_tests_the_oldest_and_the_newest_torch() -> None:
    """With the wheel of the sdist; the oldest is the one that users are told."""
    (releases,) = re.findall(r"^MATRIX \?= (.+)$", MAKEFILE, re.MULTILINE)
    oldest, *_, newest = releases.split()
    environment = job("ci", "matrix")["env"]
    assert environment == {"WHEEL_FROM": "sdist", "MATRIX": f"{oldest} {newest}"}
    (told,) = re.findall(r"torch>=(\S+)", " ".join(PYPROJECT["project"]["dependencies"]))
    assert oldest.startswith(f"{told}.")


def test_release_architectures_are_stated_once() -> None:
    """Beside the settings of cibuildwheel, which every way to a release wheel goes through."""
    architectures = CIBUILDWHEEL["environment"]["TORCH_CUDA_ARCH_LIST"]
    assert architectures == "7.5 8.0 9.0 10.0 12.0+PTX"
    for gpu in ("8.6", "8.7", "8.9", "10.3", "12.1", "13.0"):
        assert code_for(architectures, gpu) is not None
    places = [ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / "setup.py", *PATHS]
    assert sum(path.read_text().count("12.0+PTX") for path in places) == 1


def test_release_wheels_hold_no_library_of_torch() -> None:
    repair = CIBUILDWHEEL["linux"]["repair-wheel-command"]
    assert "--exclude 'libtorch*.so' --exclude 'libc10*.so'" in repair
    assert CIBUILDWHEEL["test-groups"] == ["test"]
    assert "pytest -m 'not gpu'" in CIBUILDWHEEL["test-command"]


def test_what_is_published_is_what_wheels_made() -> None:
    """Every artifact of that workflow, after its tests, on a tag of a version."""
    assert WORKFLOWS["publish"]["on"] == {"push": {"tags": ["v*"]}}
    assert job("publish", "publish")["needs"] == "wheels"
    assert job("publish", "wheels") == {"needs": "tag", "uses": "./.github/workflows/wheels.yml"}
    assert "workflow_call" in WORKFLOWS["wheels"]["on"]
    (taken,) = steps("publish", "publish", "actions/download-artifact")
    assert taken == {"pattern": "dist-*", "path": "dist", "merge-multiple": "true"}
    for name in WORKFLOWS["wheels"]["jobs"]:
        (given,) = steps("wheels", name, "actions/upload-artifact")
        assert given["name"].startswith("dist-")
        assert given["if-no-files-found"] == "error"
    (published,) = steps("publish", "publish", "pypa/gh-action-pypi-publish")
    assert published == {"attestations": "true"}
