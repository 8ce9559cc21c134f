"""How quickly the files of a corpus are checked: read for the first time, and again through the cache.

    python benchmarks/preflight.py [--root ../shared/data/la_mini] [--threads 4] [--links 100000]

`--links` is the size of a corpus of links to these files whose facts are in the cache already: what a second check
of a large corpus takes. The checks before every run are timed on the corpus as it is.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import pandas as pd

from audiolab import assemble, config
from audiolab.preflight.contents import examine_contents
from audiolab.preflight.files import FactsCache, read_files
from audiolab.preflight.lists import examine_lists
from audiolab.preflight.quick import before_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/la_mini"))
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--links", type=int, default=100_000)
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    composed = config.compose_run(["task=asvspoof", "data=asvspoof/la2019", f"data.root={root}"], "x")
    composed["outputs"] = tempfile.gettempdir()
    data, task = assemble.prepare(composed)
    paths = [path for name in data.listed_sets for path in data.listing(name)["file"]]
    with tempfile.TemporaryDirectory() as folder:
        with FactsCache(Path(folder) / "facts.sqlite") as cache:
            for what in ("first", "again"):
                started_s, before_s = time.perf_counter(), time.process_time()
                facts, _ = read_files(paths, cache, arguments.threads)
                _tell(f"{what}, {arguments.threads} threads", len(paths), time.perf_counter() - started_s)
                print(f"{'':<26} {time.process_time() - before_s:8.2f} s of processor time")
        links = _links(list(facts), Path(folder) / "links", arguments.links)
        with FactsCache(Path(folder) / "facts.sqlite") as cache:
            rows = []
            for number, (link, original) in enumerate(links.items()):
                state = os.stat(link)  # noqa: PTH116
                known = facts[original]._replace(digest=f"{number}")
                rows.append((link, state.st_size, state.st_mtime_ns, known))
            cache.save(rows)
            started_s = time.perf_counter()
            linked, reasons = read_files(list(links), cache, arguments.threads)
            _tell("a large corpus, again", len(links), time.perf_counter() - started_s)
        listing = pd.DataFrame({"id": list(links), "file": list(links), "label": "x", "speaker": "-"})
        started_s = time.perf_counter()
        sets = {"train": listing.iloc[::2], "eval": listing.iloc[1::2]}
        examine_lists(sets)
        examine_contents(sets, linked, reasons, None)
        _tell("  judging its facts", len(links), time.perf_counter() - started_s)
    started_s = time.perf_counter()
    before_run(composed, data, task, 1)
    print(f"{'before a run':<26} {time.perf_counter() - started_s:8.2f} s beyond what it prepares anyway")


def _tell(what: str, number: int, seconds: float) -> None:
    print(f"{what:<26} {seconds:8.2f} s for {number:,} files: {number / seconds:,.0f} a second")


def _links(originals: list[str], folder: Path, number: int) -> dict[str, str]:
    """Make so many links, a thousand to a folder; each with the file it stands for."""
    links = {}
    for index, original in zip(range(number), itertools.cycle(originals), strict=False):
        link = folder / f"{index // 1000}" / f"{index}{Path(original).suffix}"
        if index % 1000 == 0:
            link.parent.mkdir(parents=True)
        link.symlink_to(original)
        links[str(link)] = original
    return links


if __name__ == "__main__":
    main()
