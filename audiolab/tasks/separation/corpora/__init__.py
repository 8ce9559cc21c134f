"""Where mixtures and their sources lie in the corpora."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolab.build import check_signature
from audiolab.errors import InputError
from audiolab.tasks.separation.corpora.base import Corpus
from audiolab.tasks.separation.corpora.folders import Folders, WSJ0Mix
from audiolab.tasks.separation.corpora.librimix import LibriMix
from audiolab.tasks.separation.corpora.own_csv import OwnCsv

LAYOUTS: dict[str, type[Corpus]] = {kind.choice: kind for kind in (LibriMix, WSJ0Mix, OwnCsv, Folders)}


def open_corpus(
    layout: str, root: str, num_speakers: int, sample_rate_hz: int, variant: Mapping[str, Any] | None
) -> Corpus:
    """Return the corpus of a layout at a root; InputError for a layout, a root or options of it that do not fit."""
    if layout not in LAYOUTS:
        close = difflib.get_close_matches(str(layout), LAYOUTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(LAYOUTS)}"
        raise InputError(f"data.layout={layout} is unknown: {hint}")
    kind, options, path = LAYOUTS[layout], dict(variant or {}), Path(root).expanduser()
    own = set(inspect.signature(kind).parameters) - set(inspect.signature(Corpus).parameters)
    if options and not own:
        raise InputError(f"data.variant.{next(iter(options))} does not fit: data.layout={layout} has no such options")
    check_signature(kind, options, "data.variant", given=("root", "num_speakers", "sample_rate_hz"))
    try:
        return kind(path, num_speakers, sample_rate_hz, **options)
    except InputError as error:
        found = [other for other in LAYOUTS.values() if other is not kind and other.is_at(path)]
        hint = f"; it looks like {found[0].title}: choose the data= of that" if found and not kind.is_at(path) else ""
        raise InputError(f"{error}{hint}") from error
