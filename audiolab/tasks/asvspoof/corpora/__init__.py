"""Where things lie in the public corpora: which sets there are, their trial lists, audio files and ASV scores."""

from __future__ import annotations

import difflib
from pathlib import Path

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.corpora.asvspoof5 import ASVspoof5
from audiolab.tasks.asvspoof.corpora.asvspoof2021 import DF2021, LA2021
from audiolab.tasks.asvspoof.corpora.base import Corpus
from audiolab.tasks.asvspoof.corpora.in_the_wild import InTheWild
from audiolab.tasks.asvspoof.corpora.la2019 import LA2019
from audiolab.tasks.asvspoof.corpora.own_csv import OwnCsv

LAYOUTS: dict[str, type[Corpus]] = {
    kind.choice: kind for kind in (LA2019, LA2021, DF2021, ASVspoof5, InTheWild, OwnCsv)
}


def open_corpus(layout: str, root: str, subset: str | None = None, option: str = "data.root") -> Corpus:
    """Return the corpus of a layout at a root; InputError for a layout that does not exist."""
    if layout not in LAYOUTS:
        close = difflib.get_close_matches(str(layout), LAYOUTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(LAYOUTS)}"
        raise InputError(f"{option.rpartition('.')[0]}.layout={layout} is unknown: {hint}")
    return LAYOUTS[layout](Path(root).expanduser(), subset, option, tuple(LAYOUTS.values()))
