"""What a check found, and all findings together as table, as JSON and as one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

State = Literal["ok", "untried", "warning", "problem"]
_MARKS = {"ok": ("✓", "green"), "untried": ("-", "dim"), "warning": ("⚠", "yellow"), "problem": ("✗", "bold red")}
_PLAIN_MARKS = {"ok": "+", "untried": "-", "warning": "!", "problem": "x"}  # where the terminal cannot show the others
_ITEMS_SHOWN = 5
_WIDTH, _WIDEST_NAME = 100, 18


@dataclass(frozen=True)
class Finding:
    """One line of the table: `check` of a `group` found something; `remedy` says what to do, `items` which ones."""

    group: str
    check: str
    state: State
    found: str
    remedy: str = ""
    items: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The finding in one line, as a run that is about to start says it."""
        shown = f" ({some(self.items, 3)})" if self.items else ""
        return f"{self.check}: {self.found}{shown}" + (f": {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Report:
    """Every finding in order, and what was measured of each set."""

    findings: list[Finding]
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def count(self, state: State) -> int:
        """Return how many findings have a state."""
        return sum(finding.state == state for finding in self.findings)

    @property
    def ready(self) -> bool:
        """Whether a run may start: warnings do not stop one."""
        return self.count("problem") == 0

    @property
    def verdict(self) -> str:
        """The last line.

        >>> Report([Finding("disk", "space", "warning", "little is free")]).verdict
        'ready, 1 warning'
        """
        problems, warnings = (
            f"{number} {word}{'s' * (number != 1)}"
            for number, word in ((self.count("problem"), "problem"), (self.count("warning"), "warning"))
        )
        if self.ready:
            return f"ready, {warnings}" if self.count("warning") else "ready"
        return f"{problems}, {warnings}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ready, problems, warnings, findings (all fields of each), sets."""
        return {
            "ready": self.ready,
            "problems": self.count("problem"),
            "warnings": self.count("warning"),
            "findings": [{**asdict(finding), "items": list(finding.items)} for finding in self.findings],
            "sets": self.sets,
        }


def some(items: Sequence[str], num: int = _ITEMS_SHOWN) -> str:
    """Name the first few of many.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(items) - num:,} more" if len(items) > num else ""
    return ", ".join(items[:num]) + more


def size(mb: float) -> str:
    """Write a number of MiB in a unit that suits it.

    >>> size(0.03), size(12.34), size(8192.0)
    ('31 KiB', '12.3 MiB', '8.0 GiB')
    """
    if mb < 1:
        return f"{mb * 1024:.0f} KiB"
    return f"{mb:.1f} MiB" if mb < 1000 else f"{mb / 1024:.1f} GiB"


def print_report(report: Report, title: str, terminal: Console) -> None:
    """Print the table, grouped, and the verdict as the last line; never wider than the terminal or 100 columns."""
    plain = not (terminal.encoding or "").lower().startswith("utf")
    widest = max((len(finding.check) for finding in report.findings), default=0)
    terminal.print(Text(title, style="bold"))
    for group in dict.fromkeys(finding.group for finding in report.findings):
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(min_width=min(widest, _WIDEST_NAME), max_width=_WIDEST_NAME, overflow="fold")
        table.add_column(overflow="fold")
        for finding in report.findings:
            if finding.group == group:
                mark, style = _MARKS[finding.state]
                shown = Text(_PLAIN_MARKS[finding.state] if plain else mark, style=style)
                table.add_row(shown, finding.check, Group(*_lines(finding)))
        terminal.print(Text(f"\n{group}", style="bold"))
        _print_lines(terminal, Padding(table, (0, 0, 0, 1), expand=False), min(terminal.width, _WIDTH))
    terminal.print(Text(f"\n{report.verdict}", style="bold green" if report.ready else "bold red"))


def _print_lines(terminal: Console, shown: RenderableType, width: int) -> None:
    """Print without the blanks that fill up a table's last column."""
    for line in terminal.render_lines(shown, terminal.options.update(width=width), pad=False):
        while line and not line[-1].text.strip():
            line.pop()
        if line:
            line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
        terminal.print(Segments([*line, Segment.line()]), end="")


def _lines(finding: Finding) -> Iterable[RenderableType]:
    yield Text(finding.found)
    if finding.items:
        yield from (Text(f"  {item}", style="dim") for item in finding.items[:_ITEMS_SHOWN])
        if len(finding.items) > _ITEMS_SHOWN:
            yield Text(f"  and {len(finding.items) - _ITEMS_SHOWN:,} more: --json lists all", style="dim")
    if finding.remedy:
        yield Text(f"{finding.remedy[0].upper()}{finding.remedy[1:]}.", style="italic")
