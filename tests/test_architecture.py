"""Imports point downward: verbs -> engine -> tasks -> library; no task imports another, the library imports no task."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "audiolab"
LIBRARY = ("audio", "augment", "nn", "metrics", "text", "training", "reporting", "preflight")
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("audiolab.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downward(path: Path):
    parts = path.relative_to(PACKAGE).parts
    for name in imported(path):
        if parts[0] in LIBRARY:
            assert name.split(".")[1] in (*LIBRARY, "errors", "tracking"), f"{path} imports {name}"
        if parts[0] == "tasks" and len(parts) > 2:
            assert not name.startswith(("audiolab.engine", "audiolab.assemble")), f"{path} imports {name}"
            if name.startswith("audiolab.tasks."):
                assert name.split(".")[2] == parts[1], f"{path} imports another task: {name}"
        if parts[0] in ("audio", "augment", "nn", "metrics", "text"):
            assert name.split(".")[1] not in ("training", "reporting", "tracking"), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_random_draws_come_from_generators(path: Path):
    source = path.read_text(encoding="utf-8")
    found = re.findall(r"np\.random\.(?!default_rng|Generator|SeedSequence|PCG64|Philox)\w+", source)
    found += re.findall(r"(?<![\w.])random\.(?:random|randint|choice|shuffle|seed|uniform)\(", source)
    assert not found, f"{path} draws from a global generator: {found}"


def test_help_and_composition_load_neither_torch_nor_lightning():
    code = (
        "import sys, audiolab.run as r; r.main(['--help']); r.main([]); "
        "r.conf.compose_run(['task=asvspoof'], 'x'); "
        "print([m for m in ('torch', 'lightning', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_public_functions_and_classes_have_docstrings_and_types(path: Path):
    def check(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
                continue
            assert ast.get_docstring(child), f"{child.name} has no docstring"
            if isinstance(child, ast.ClassDef):
                check(child)
            else:
                arguments = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs]
                bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                assert not bare and child.returns is not None, f"{child.name} lacks types: {bare}"

    check(ast.parse(path.read_text(encoding="utf-8")))


def test_every_fault_in_the_table_has_its_test():
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)` \|$", text[text.index("## What happens when") :], re.MULTILINE)
    assert len(named) >= 30
    for file, test in named:
        assert f"\ndef {test}(" in (PACKAGE.parent / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_a_run_folder_that_is_refused_costs_no_import_of_torch(tmp_path: Path):
    (tmp_path / "outputs/task/e2").mkdir(parents=True)
    (tmp_path / "outputs/task/e2/config.yaml").write_text("{task: t, name: e2, module: {}, model: {}, data: {}}")
    code = (
        "import sys, audiolab.resume as r; from audiolab.errors import InputError\n"
        "def refused(*argv):\n"
        "    try: r.main(argv)\n"
        "    except InputError as error: print(error)\n"
        "refused('nowhere'); refused('e2')\n"
        "refused('outputs/task/e2', 'seed=5'); refused('outputs/task/e2', 'on_out_of_memory=halve')\n"
        "print([m for m in ('torch', 'lightning', 'numpy', 'pandas') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    lines = done.stdout.splitlines()
    assert "nearby: outputs/task/e2" in lines[1]
    assert "seed cannot be changed" in lines[2]
    assert "give stop or halve_batch" in lines[3]
    assert lines[4] == "[]"


@pytest.mark.parametrize("verb", ["run", "resume", "test", "predict", "score", "fuse", "check", "prepare", "export"])
def test_every_verb_tells_its_options(verb: str, capsys: pytest.CaptureFixture[str]):
    try:
        code = importlib.import_module(f"audiolab.{verb}").main(["--help"])
    except SystemExit as end:
        code = end.code
    assert not code
    assert f"python -m audiolab.{verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["resume", "test", "export"])
def test_a_verb_without_its_run_folder_asks_for_that_alone(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        importlib.import_module(f"audiolab.{verb}").main([])
    assert capsys.readouterr().err.splitlines()[-1].endswith("required: outputs/<task>/<name>")
