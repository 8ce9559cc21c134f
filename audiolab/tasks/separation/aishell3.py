"""The DataModule of mixtures of AISHELL-3, which `python -m audiolab.prepare` makes before the first run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolab.build import check_signature
from audiolab.errors import InputError
from audiolab.tasks.separation.aishell3_mixtures import Aishell3Mixtures
from audiolab.tasks.separation.aishell3_options import MixtureOptions
from audiolab.tasks.separation.data import SeparationData
from audiolab.tasks.separation.librimix_writer import SOURCES


class Aishell3Data(SeparationData):
    """Mixtures of the AISHELL-3 corpus at `root` as `mixtures` says, in the folder `prepared`.

    Without `prepared` they are in prepared/ in the working folder, under a name made of that of the corpus, the number
    of speakers and the rate. Dynamic mixing takes all utterances of the training speakers, unless `dynamic.sources`
    names others. For the other options see `SeparationData`.
    """

    def __init__(self, root: str, prepared: str | None, mixtures: dict[str, Any], **options: Any) -> None:
        check_signature(SeparationData, {"root": root, **options}, "data")
        preparation = _preparation({"root": root, "prepared": prepared, "mixtures": mixtures, **options})
        if preparation.facts(but=("root",)) is None:  # the corpus may have moved, or be gone
            raise InputError(
                f"{preparation.folder} is not prepared, or not to its end: give the same options once to "
                "python -m audiolab.prepare, or name the folder with data.prepared="
            )
        dynamic = dict(options["dynamic"])
        dynamic["sources"] = dynamic.get("sources") or str(preparation.folder / SOURCES)
        super().__init__(root=str(preparation.folder), **{**options, "dynamic": dynamic})

    @classmethod
    def preparation(cls, section: Mapping[str, Any]) -> Aishell3Mixtures:
        """Return what makes the mixtures of a data section."""
        return _preparation(section)


def _preparation(section: Mapping[str, Any]) -> Aishell3Mixtures:
    check_signature(MixtureOptions, section["mixtures"], "data.mixtures")
    root, num_speakers, rate = Path(section["root"]).expanduser(), section["num_speakers"], section["sample_rate_hz"]
    name = f"{root.resolve().name}_{num_speakers}mix_{rate // 1000}k"
    return Aishell3Mixtures(
        root,
        Path(section["prepared"]).expanduser() if section["prepared"] else Path("prepared") / name,
        MixtureOptions(**section["mixtures"]),
        num_speakers=num_speakers,
        sample_rate_hz=rate,
        mode=section["variant"]["length"],
        on_bad_audio=section["on_bad_audio"],
        max_bad_audio=section["max_bad_audio"],
        num_workers=section["num_workers"],
    )
