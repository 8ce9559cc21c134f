"""Every published text format: the samples are read, and each kind of broken line is answered with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.asv_scores import read_2019_asv_scores, read_2021_asv_scores
from audiolab.tasks.asvspoof.protocols import (
    ASVSPOOF_5,
    DF_2021,
    LA_2019,
    LA_2021,
    Trial,
    read_in_the_wild,
    read_own_csv,
    read_protocol,
)


@pytest.fixture(scope="session")
def formats(shared: Path) -> Path:
    return shared / "reference" / "asvspoof" / "formats"


def test_2021_la(formats: Path):
    assert read_protocol(formats / "2021LA.cm.trial_metadata.txt", LA_2021) == [
        Trial("LA_E_9332001", "LA_0009", "A07", "spoof", "alaw", subset="eval"),
        Trial("LA_E_9332002", "LA_0010", "-", "bonafide", "none", subset="progress"),
        Trial("LA_E_9332003", "LA_0011", "A19", "spoof", "pstn", subset="hidden"),
    ]


def test_2021_df(formats: Path):
    found = read_protocol(formats / "2021DF.cm.trial_metadata.txt", DF_2021)
    assert found[1] == Trial(
        "DF_E_2900002", "TEF2", "Task1-team20", "spoof", "low_m4a", "neural_vocoder_autoregressive", "vcc2020", "eval"
    )
    assert (found[0].attack, found[0].vocoder, found[0].subset) == ("A14", "traditional_vocoder", "progress")
    assert (found[2].attack, found[2].label, found[2].codec) == ("-", "bonafide", "mp3m4a")


def test_asvspoof_5(formats: Path):
    assert read_protocol(formats / "asvspoof5.eval.track_1.tsv", ASVSPOOF_5) == [
        Trial("E_9000000001", "E_1607", "A20", "spoof", "C05"),
        Trial("E_9000000002", "E_1608", "-", "bonafide", "C00"),
    ]
    assert [t.attack for t in read_protocol(formats / "asvspoof5.train.tsv", ASVSPOOF_5)] == ["A05", "-"]


def test_in_the_wild(formats: Path):
    assert read_in_the_wild(formats / "itw.meta.csv") == [
        Trial("0.wav", "Speaker One", "unknown", "spoof"),
        Trial("1.wav", "Speaker Two", "-", "bonafide"),
    ]


def test_the_csv_of_df_arena(formats: Path):
    assert read_own_csv(formats / "df_arena.protocol.csv") == [
        Trial("audio/a.flac", "-", "unknown", "spoof", subset="eval"),
        Trial("audio/b.flac", "-", "-", "bonafide", subset="eval"),
    ]


def test_2021_asv_scores_are_joined_by_speaker_and_trial_in_any_order(formats: Path, tmp_path: Path):
    metadata, scores = formats / "2021LA.asv.trial_metadata.txt", formats / "2021LA.asv.score.txt"
    found = read_2021_asv_scores(metadata, scores)
    assert found.to_dict("records")[2] == {
        "attack": "A12",
        "key": "spoof",
        "codec": "g722",
        "subset": "eval",
        "score": 1.9034,
    }
    assert found["attack"].tolist() == ["-", "-", "A12"]
    turned = tmp_path / "score.txt"
    turned.write_text("\n".join(reversed(scores.read_text().splitlines())))
    assert read_2021_asv_scores(metadata, turned).equals(found)
    turned.write_text("\n".join(scores.read_text().splitlines()[1:]))
    with pytest.raises(InputError, match="lacks 1 of 3 trials of .*trial_metadata.txt, the first is LA_0009"):
        read_2021_asv_scores(metadata, turned)
    turned.write_text(scores.read_text() + scores.read_text())
    with pytest.raises(InputError, match="score.txt lists trial LA_E_9400001 of speaker LA_0009 twice"):
        read_2021_asv_scores(metadata, turned)


SAMPLES = {
    "2021LA.cm.trial_metadata.txt": lambda path: read_protocol(path, LA_2021),
    "2021DF.cm.trial_metadata.txt": lambda path: read_protocol(path, DF_2021),
    "asvspoof5.eval.track_1.tsv": lambda path: read_protocol(path, ASVSPOOF_5),
    "2019LA.cm.eval.trl.txt": lambda path: read_protocol(path, LA_2019),
    "itw.meta.csv": read_in_the_wild,
    "df_arena.protocol.csv": read_own_csv,
    "2019LA.asv.scores.txt": read_2019_asv_scores,
}


@pytest.mark.parametrize(
    ("sample", "old", "new", "expected"),
    [
        ("2021LA.cm.trial_metadata.txt", "A07 spoof", "A07 fake", "line 1, column 6: 'fake' is no label.*2021 LA"),
        (
            "2021LA.cm.trial_metadata.txt",
            " pstn ",
            " amr ",
            "line 3, column 3: 'amr' is no codec",
        ),
        (
            "2021LA.cm.trial_metadata.txt",
            "progress",
            "dev",
            "line 2, column 8: 'dev' is no subset",
        ),
        ("2021LA.cm.trial_metadata.txt", "A07 spoof", "A07 bonafide", "line 1, column 5: attack 'A07' contradicts"),
        ("2021LA.cm.trial_metadata.txt", " notrim", "", "line 1: 7 columns, expected 8"),
        (
            "2021LA.cm.trial_metadata.txt",
            "9332002",
            "9332001",
            "line 2: trial LA_E_9332001 is listed before",
        ),
        ("2021DF.cm.trial_metadata.txt", "traditional_vocoder", "vocoder", "line 1, column 9: 'vocoder' is no vocoder"),
        ("2021DF.cm.trial_metadata.txt", "vcc2020", "vcc2021", "line 2, column 4: 'vcc2021' is no source"),
        ("asvspoof5.eval.track_1.tsv", "A20 spoof", "- spoof -", "line 1: 11 columns, expected 10"),
        ("asvspoof5.eval.track_1.tsv", "A20 spoof", "bonafide spoof", "column 8: attack 'bonafide' contradicts"),
        ("2019LA.cm.eval.trl.txt", "A07 spoof", "- spoof", "line 1, column 4: attack '-' contradicts the label spoof"),
        ("itw.meta.csv", "bona-fide", "bonafide", "line 3, column 3: 'bonafide' is no label, expected bona-fide"),
        (
            "itw.meta.csv",
            "file,speaker,label\n",
            "",
            "line 1: there is no column 'file'",
        ),
        ("itw.meta.csv", "Speaker One,", "", "line 2: 2 fields, the header has 3"),
        ("itw.meta.csv", "Speaker One", "One, Speaker", "line 2: 4 fields, .*comma inside a field needs quotes"),
        ("itw.meta.csv", "0.wav", "", "line 2, column 1: file is empty"),
        ("itw.meta.csv", "1.wav", "0.wav", "line 3: trial 0.wav is listed before, in line 2"),
        ("df_arena.protocol.csv", ",spoof", ",0", "line 2, column 2: '0' is no label, expected bonafide"),
        ("df_arena.protocol.csv", "label", "lable", "there is no column 'label'"),
        (
            "df_arena.protocol.csv",
            "label\n",
            "label,speakr\n",
            "the column 'speakr' is not known.*'speaker'",
        ),
        ("df_arena.protocol.csv", "label\n", "label,label\n", "the column 'label' is there twice"),
        ("2019LA.asv.scores.txt", "4.137021", "inf", "line 1, column 3: 'inf' is not a finite number"),
    ],
)
def test_a_broken_line_is_named(formats: Path, tmp_path: Path, sample: str, old: str, new: str, expected: str):
    text = (formats / sample).read_text()
    assert old in text
    (tmp_path / sample).write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=expected) as error:
        SAMPLES[sample](tmp_path / sample)
    assert sample in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sample", SAMPLES)
def test_files_that_are_no_list(tmp_path: Path, sample: str):
    path = tmp_path / sample
    with pytest.raises(InputError, match="does not exist"):
        SAMPLES[sample](path)
    path.write_bytes(b"fLaC\x00\xff\xfe\x80")
    with pytest.raises(InputError, match="not a text file"):
        SAMPLES[sample](path)
    path.write_text("")
    with pytest.raises(InputError, match=r"has no lines|there is no column 'file'"):
        SAMPLES[sample](path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.wav,bonafide,A01,,eval", "line 2, column 3: attack 'A01' contradicts the label bonafide"),
        ("a.wav,spoof,A01,,test", "line 2, column 5: 'test' is no set, expected train, dev or eval"),
        ("a.wav,spoof,A/1,,eval", "line 2, column 3: '/' cannot be in the name"),
    ],
)
def test_wrong_values_in_a_csv_of_ones_own(tmp_path: Path, line: str, expected: str):
    path = tmp_path / "own.csv"
    path.write_text(f"file,label,attack,codec,set\n{line}\n")
    with pytest.raises(InputError, match=expected):
        read_own_csv(path)


def test_a_csv_may_be_quoted_and_have_further_columns(tmp_path: Path):
    path = tmp_path / "own.csv"
    path.write_text('\ufefffile,label,seconds,attack\n"a, b.wav",bona-fide,3,\nc.wav,spoof,4,TTS\n', encoding="utf-8")
    assert read_own_csv(path) == [
        Trial("a, b.wav", "-", "-", "bonafide", subset="eval"),
        Trial("c.wav", "-", "TTS", "spoof", subset="eval"),
    ]
