"""Run folders that a user may have meant."""

from __future__ import annotations

import difflib
from pathlib import Path

_SHOWN = 3
_PARENT = Path("outputs")  # where runs are by default


def runs_near(path: Path) -> list[Path]:
    """Return run folders for a path that is none: of its name or a similar one, then unfinished and new ones.

    >>> import tempfile
    >>> outputs = Path(tempfile.mkdtemp())
    >>> for name in ("a", "b", "seed3"):
    ...     (outputs / "task" / name).mkdir(parents=True)
    ...     _ = (outputs / "task" / name / "config.yaml").write_text("")
    >>> [found.name for found in runs_near(outputs / "task" / "sed3")]
    ['seed3']
    >>> _ = (outputs / "task" / "seed3" / "metrics.json").write_text("{}")
    >>> sorted(found.name for found in runs_near(outputs / "task")[:2]), runs_near(outputs / "task")[2].name
    (['a', 'b'], 'seed3')
    """
    base = path if path.is_dir() else next((parent for parent in path.parents if parent.is_dir()), Path())
    if path.is_dir():
        return _runs_in(base, "*", "*/*")[:_SHOWN]
    found = list(dict.fromkeys([*_runs_in(base, "*"), *_runs_in(_PARENT, "*/*", "*/*/*")]))
    names = difflib.get_close_matches(path.name, {run.name for run in found}, n=_SHOWN)
    close = [run for name in names for run in found if run.name == name]
    return (close or found)[:_SHOWN]


def _runs_in(folder: Path, *depths: str) -> list[Path]:
    """Return the runs that lie so deep in a folder, which may be any: unfinished ones first, then the newest."""
    configs = [found for depth in depths for found in folder.glob(f"{depth}/config.yaml")]
    runs = [config.parent for config in configs]
    return sorted(runs, key=lambda run: ((run / "metrics.json").is_file(), -(run / "config.yaml").stat().st_mtime))
