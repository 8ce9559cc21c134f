"""Installed packages and Python against what audiolab asks for."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from audiolab.preflight.findings import Finding

GROUP = "packages"
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
"""Uploads that carried malware: GHSA-w37p-236h-pfx3."""


def installed(name: str) -> str | None:
    """Return the version of an installed package, or None.

    >>> installed("numpy") is not None, installed("no-such-package")
    (True, None)
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> tuple[list[str], dict[str, list[str]], str]:
    """Return what audiolab needs, what its extras need, and its Python: of the checkout, else of the installed wheel.

    >>> needed, extras, python = requirements()
    >>> any(line.startswith("torch") for line in needed), "wandb" in extras, python.startswith(">=3.")
    (True, True, True)
    """
    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project["dependencies"], project["optional-dependencies"], project["requires-python"]
    about = metadata.metadata("audiolab")
    lines = [Requirement(line) for line in about.get_all("Requires-Dist") or ()]
    needed = [str(line) for line in lines if not line.marker or line.marker.evaluate({"extra": ""})]
    extras = {
        extra: [_bare(line) for line in lines if line.marker and line.marker.evaluate({"extra": extra})]
        for extra in about.get_all("Provides-Extra") or ()
    }
    return needed, extras, about["Requires-Python"]


def check_python(version: str, needed: str) -> Finding:
    """Compare a Python version with what is asked for.

    >>> check_python("3.9.1", ">=3.11,<3.13").state
    'problem'
    """
    if SpecifierSet(needed).contains(version, prereleases=True):
        return Finding(GROUP, "Python", "ok", version)
    return Finding(GROUP, "Python", "problem", f"{version}, and {needed} is needed", "make an environment with one")


def check_packages(needed: Iterable[str], versions: Mapping[str, str | None]) -> Finding:
    """Compare versions by package name with requirements; None stands for a package that is not there.

    >>> check_packages(["torch>=2.11,<2.12"], {"torch": "2.11.0+cu130"}).found
    '1 at the versions asked for'
    >>> check_packages(["torch>=2.11,<2.12"], {"torch": "2.9.1"}).state
    'warning'
    """
    lines = [Requirement(line) for line in needed]
    missing = [str(line) for line in lines if versions.get(line.name) is None]
    if missing:
        remedy = "install them: pip install " + " ".join(f"'{line}'" for line in missing)
        return Finding(GROUP, "packages", "problem", f"{len(missing)} not installed", remedy, tuple(missing))
    other = [f"{x.name} {versions[x.name]}, asked for {x.specifier}" for x in lines if not _fits(x, versions[x.name])]
    if other:
        remedy = "install what constraints.txt pins, or expect what nobody has tried"
        return Finding(GROUP, "packages", "warning", f"{len(other)} at other versions", remedy, tuple(other))
    return Finding(GROUP, "packages", "ok", f"{len(lines)} at the versions asked for")


def check_safety(versions: Mapping[str, str | None]) -> list[Finding]:
    """Name packages that are known to carry malware.

    >>> [finding.state for finding in check_safety({"lightning": "2.6.2"})]
    ['problem']
    """
    remedy = "remove it now, treat every credential on this machine as stolen, install lightning 2.6.4 or later"
    return [
        Finding(GROUP, name, "problem", f"{versions[name]} is a malicious upload (GHSA-w37p-236h-pfx3)", remedy)
        for name, bad in MALICIOUS.items()
        if versions.get(name) in bad
    ]


def check_torchaudio(torch: str | None, torchaudio: str | None) -> list[Finding]:
    """Compare the pair, which only loads with equal major and minor versions; torchaudio may be absent.

    >>> [finding.state for finding in check_torchaudio("2.11.0+cu130", "2.9.0")]
    ['warning']
    """
    if torch is None or torchaudio is None or torch.split(".")[:2] == torchaudio.split(".")[:2]:
        return []
    found = f"{torchaudio} does not belong to torch {torch} and may not load"
    remedy = f"install torchaudio {'.'.join(torch.split('.')[:2])}, or remove it: audiolab does without"
    return [Finding(GROUP, "torchaudio", "warning", found, remedy)]


def check_extras(
    wanted: Mapping[str, str], extras: Mapping[str, list[str]], versions: Mapping[str, str | None]
) -> list[Finding]:
    """Check the packages of the extras that a configuration uses; `wanted` says by extra what uses it.

    >>> wanted = {"wandb": "logger=wandb"}
    >>> check_extras(wanted, {"wandb": ["wandb>=0.20"]}, {"wandb": None})[0].remedy
    "pip install 'wandb>=0.20', or leave out logger=wandb"
    """
    findings = []
    for extra, user in wanted.items():
        lines = [Requirement(line) for line in extras.get(extra, [])]
        lacking = [line for line in lines if not _fits(line, versions.get(line.name))]
        if lacking:
            names = " ".join(f"'{line}'" for line in lacking)
            there = ", ".join(f"{line.name} {versions.get(line.name) or 'not installed'}" for line in lacking)
            remedy = f"pip install {names}, or leave out {user}"
            findings.append(Finding(GROUP, extra, "problem", f"{user} needs it: {there}", remedy))
        else:
            shown = ", ".join(f"{line.name} {versions[line.name]}" for line in lines)
            findings.append(Finding(GROUP, extra, "ok", f"{shown}, for {user}"))
    return findings


def examine_packages(wanted: Mapping[str, str]) -> list[Finding]:
    """Check this environment; `wanted` as in `check_extras`."""
    needed, extras, python = requirements()
    names = {Requirement(line).name for line in [*needed, *(line for extra in wanted for line in extras[extra])]}
    versions = {name: installed(name) for name in [*names, *MALICIOUS, "torchaudio"]}
    return [
        check_python(platform.python_version(), python),
        check_packages(needed, versions),
        *check_safety(versions),
        *check_torchaudio(versions.get("torch"), versions["torchaudio"]),
        *check_extras(wanted, extras, versions),
    ]


def _fits(line: Requirement, version: str | None) -> bool:
    return version is not None and line.specifier.contains(version, prereleases=True)


def _bare(line: Requirement) -> str:
    return f"{line.name}{line.specifier}"
