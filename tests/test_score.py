"""Bare score files in every published layout give the recorded numbers of the official packages, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from audiolab import score
from audiolab.errors import InputError
from audiolab.reporting.scores import read_scores

CM_SETS = ["overlap", "inverted", "ties_halfstep"]
EXACT = {"rel": 0, "abs": 1e-12}


@pytest.fixture(scope="module")
def arrays(shared):
    with np.load(shared / "reference/asvspoof/eval_scores.npz") as file:
        return {key: file[key].astype(np.float64) if file[key].dtype.kind == "f" else file[key] for key in file.files}


@pytest.fixture(scope="module")
def expected(shared):
    return json.loads((shared / "reference/asvspoof/eval_expected.json").read_text())


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals have tests of their own."""
    monkeypatch.setattr("audiolab.tasks.asvspoof.breakdowns._NUM_RESAMPLES", 40)


def write(path: Path, rows, separator=" ", header=None) -> str:
    lines = [separator.join(map(str, row)) for row in rows]
    path.write_text("\n".join([*([header] if header else []), *lines]) + "\n")
    return str(path)


def trials_of(arrays, name):
    """Utterance, speaker, attack, label and score of a reference set."""
    keys = (arrays[f"cm/{name}/{key}"].tolist() for key in ("score", "bonafide", "attack"))
    return [
        (f"LA_E_{index:07d}", f"LA_{index % 20:04d}", f"A{a:02d}" if a else "-", "bonafide" if b else "spoof", s)
        for index, (s, b, a) in enumerate(zip(*keys, strict=True))
    ]


def as_2019(folder, trials):
    scores = write(folder / "scores.txt", [(t[0], repr(t[4])) for t in reversed(trials)])
    return [scores, write(folder / "protocol.txt", [(t[1], t[0], "-", t[2], t[3]) for t in trials])]


def as_four_columns(folder, trials):
    return [write(folder / "scores.txt", [(t[0], t[2], t[3], repr(t[4])) for t in trials])]


def as_2021_la(folder, trials):
    scores = write(folder / "scores.txt", [*((t[0], repr(t[4])) for t in trials), ("LA_E_progress", 3.5)])
    rows = [(t[1], t[0], "alaw", "ita_tx", t[2].replace("-", "bonafide"), t[3], "notrim", "eval") for t in trials]
    rows.append(("LA_0009", "LA_E_progress", "none", "loc_tx", "A07", "spoof", "notrim", "progress"))
    return [scores, write(folder / "trial_metadata.txt", rows)]


def as_asvspoof5(folder, trials):
    scores = write(folder / "score.tsv", [(t[0], repr(t[4])) for t in trials], "\t", "filename\tcm-score")
    rows = [(t[1], t[0], "F", "-", "-", "-", "-", t[2].replace("-", "bonafide"), t[3], "-") for t in trials]
    return [scores, write(folder / "track_1.tsv", rows)]


def as_asvspoof5_full_key(folder, trials):
    rows = [(t[0], t[3], t[2].replace("-", "bonafide"), "C05") for t in trials]
    key = write(folder / "key.txt", rows, header="trial_anon cm-label attack_anon codec")
    return [as_asvspoof5(folder, trials)[0], key]


def as_own_csv(folder, trials):
    rows = [(f"{t[0]}.wav", t[1], t[3], t[2]) for t in trials]
    key = write(folder / "own.csv", rows, ",", "file,speaker,label,attack")
    return [write(folder / "scores.csv", [(t[0], repr(t[4])) for t in trials], ",", "utterance,score"), key]


def as_in_the_wild(folder, trials):
    rows = [(f"{t[0]}.wav", f"Speaker {t[1]}", t[3].replace("bona", "bona-")) for t in trials]
    key = write(folder / "meta.csv", rows, ",", "file,speaker,label")
    return [write(folder / "scores.txt", [(f"{t[0]}.wav", repr(t[4])) for t in trials]), key]


def as_df_arena(folder, trials):
    key = write(folder / "key.csv", [(f"audio/{t[0]}.flac", t[3]) for t in trials], ",", "file_name,label")
    return [write(folder / "scores.txt", [(f"audio/{t[0]}.flac", repr(t[4])) for t in trials]), key]


def as_asvspoof5_key(folder, trials):
    key = write(folder / "key.tsv", [(t[0], t[3]) for t in trials], "\t", "filename\tcm-label")
    return [as_asvspoof5(folder, trials)[0], key]


WITH_ATTACKS = [as_2019, as_four_columns, as_2021_la, as_asvspoof5, as_asvspoof5_full_key, as_own_csv]
LAYOUTS = [*WITH_ATTACKS, as_in_the_wild, as_df_arena, as_asvspoof5_key]


def judge(argv, tmp_path) -> dict:
    assert score.main(["task=asvspoof", *argv, "-o", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_recorded_numbers(arrays, expected, layout, tmp_path, capsys):
    want = expected["single_sets"]["cm"]["ties_at_boundary"]
    files = layout(tmp_path, trials_of(arrays, "ties_at_boundary"))
    (name,), (found,) = zip(*judge(files, tmp_path).items(), strict=True)
    assert name == Path(files[0]).stem
    assert found["eer"] == pytest.approx(100 * want["eer"], **EXACT)
    assert found["min_dcf"] == pytest.approx(want["minDCF"], **EXACT)
    assert found["act_dcf"] == pytest.approx(want["actDCF"], **EXACT)
    assert found["cllr"] == pytest.approx(want["Cllr_stable"], rel=1e-9)
    if layout in WITH_ATTACKS:
        by_attack = {attack: found[f"attack/{attack}/eer"] for attack in want["eer_per_attack"]}
        assert by_attack == pytest.approx({a: 100 * eer for a, eer in want["eer_per_attack"].items()}, **EXACT)
    assert ("eer_low" in found) == (layout in (as_2019, as_2021_la, as_asvspoof5, as_own_csv, as_in_the_wild))
    printed = capsys.readouterr().out.splitlines()
    assert f"EER {100 * want['eer']:.2f} %" in printed
    assert len([line for line in printed if line.startswith(tuple(files))]) == len(files)  # what each was read as
    for plot in ("det", "histogram"):
        assert (tmp_path / "out" / "plots" / f"{name}_{plot}.png").read_bytes().startswith(b"\x89PNG")
    own = tmp_path / "out" / "scores" / f"{name}.csv"
    assert len(read_scores(own)) == want["n_bonafide"] + want["n_spoof"]
    if layout is as_2019:  # our own score file holds its labels
        assert judge([str(own)], tmp_path / "again") == {name: found}


@pytest.mark.parametrize("name", CM_SETS)
def test_2019_files_with_asv_scores_give_both_t_dcfs(arrays, expected, name, tmp_path, caplog):
    codes, scores, attacks = (arrays[f"asv/typical/{key}"].tolist() for key in ("key", "score", "attack"))
    kinds = ["target", "nontarget", "spoof"]
    rows = [
        (f"A{a:02d}" if k == 2 else "bonafide", kinds[k], repr(s))
        for k, s, a in zip(codes, scores, attacks, strict=True)
    ]
    asv = write(tmp_path / "asv.txt", rows)
    found = judge([*as_2019(tmp_path, trials_of(arrays, name)), asv], tmp_path)["scores"]
    cm, tdcf = expected["single_sets"]["cm"][name], expected["single_sets"]["tdcf"][f"{name}|typical"]
    assert found["eer"] == pytest.approx(100 * cm["eer"], **EXACT)
    assert found["eer_ties_spoof_first"] == pytest.approx(100 * cm["eer_if_ties_spoof_first"], **EXACT)
    assert found["min_tdcf_2019"] == pytest.approx(tdcf["legacy2019"]["min_tDCF"], **EXACT)
    assert found["min_tdcf_2021"] == pytest.approx(tdcf["revised2021"]["min_tDCF"], **EXACT)
    for attack, value in tdcf["legacy2019_per_attack"].items():
        assert found[f"attack/{attack}/min_tdcf_2019"] == pytest.approx(value, **EXACT)
    assert ("above 50 %" in caplog.text) == (name == "inverted")
    assert ("Tied scores decide" in caplog.text) == (cm["eer"] != cm["eer_if_ties_spoof_first"])


def test_2021_la_subsets_with_asv_scores_and_metadata(arrays, expected, tmp_path):
    want = expected["la21_tables"]
    subset = [want["subset_names"][code] for code in arrays["la21/subset"]]
    names = [f"LA_E_{index:07d}" for index in range(len(subset))]
    attacks = [f"A{code:02d}" if code else "bonafide" for code in arrays["la21/attack"]]
    labels = ["spoof" if attack != "bonafide" else attack for attack in attacks]
    codecs = [want["codec_names"][code] for code in arrays["la21/codec"]]
    fixed = ["loc_tx"] * len(names), ["notrim"] * len(names)
    cm = zip(["LA_0001"] * len(names), names, codecs, fixed[0], attacks, labels, fixed[1], subset, strict=True)
    files = [write(tmp_path / "s.txt", zip(names, map(repr, arrays["la21/score"].tolist()), strict=True))]
    files.append(write(tmp_path / "cm.txt", cm))
    kinds = [["target", "nontarget", "spoof"][code] for code in arrays["la21/asv_key"]]
    columns = zip(
        kinds, *(arrays[f"la21/asv_{key}"].tolist() for key in ("score", "attack", "codec", "subset")), strict=True
    )
    scores, key = [], []
    for index, (kind, value, attack, codec, phase) in enumerate(columns):
        pair = (f"LA_{index % 7:04d}", f"LA_E_{index:07d}")
        scores.append((*pair, repr(value)))
        attack = f"A{attack:02d}" if kind == "spoof" else "bonafide"
        where = want["codec_names"][codec], "loc_tx", attack, kind, "notrim", want["subset_names"][phase]
        key.append((*pair, *where))
    files += [write(tmp_path / "asv.txt", scores), write(tmp_path / "asv_key.txt", key)]
    for phase in ("eval", "progress"):
        found = judge([*files, *(["--subset", phase] if phase != "eval" else [])], tmp_path)["s"]
        for row, attack in enumerate(want["rows"]):
            where = "" if attack == "Pooled" else f"attack/{attack}/"
            eer, tdcf = float(want[phase]["EER"][row][-1]), float(want[phase]["min_tDCF"][row][-1])
            assert found[f"{where}eer"] == pytest.approx(100 * eer, **EXACT)
            if not np.isnan(tdcf):
                assert found[f"{where}min_tdcf_2021"] == pytest.approx(tdcf, **EXACT)
        for ours, reference in (
            ("eer", 100 * grid(want[phase]["EER"])),
            ("min_tdcf_2021", grid(want[phase]["min_tDCF"])),
        ):
            cells = [[found.get(f"{ours}_by_attack_and_codec/{r}/{c}") for c in want["cols"]] for r in want["rows"]]
            np.testing.assert_allclose(grid(cells), reference, rtol=0, atol=1e-10, equal_nan=True)
    with pytest.raises(InputError, match=r"s\.txt: --subset|has eval, hidden, progress"):
        judge([*files[:2], "--subset", "evl"], tmp_path)
    with pytest.raises(InputError, match=r"asv\.txt, line 1, column 2.*--asv-key"):
        judge(files[:3], tmp_path)


def grid(rows):
    return np.array([[np.nan if value is None else float(value) for value in row] for row in rows])


def test_2021_df_by_vocoder_and_compression(arrays, expected, tmp_path):
    want = expected["df21_tables"]
    columns = {key: [want[f"{key}_names"][code] for code in arrays[f"df21/{key}"]] for key in ("subset", "vocoder")}
    codec, source = (
        [want[f"{key}_names"][code] for code in arrays[f"df21/{key}"]] for key in ("compression", "source")
    )
    names = [f"DF_E_{index:07d}" for index in range(len(codec))]
    labels = ["bonafide" if vocoder == "bonafide" else "spoof" for vocoder in columns["vocoder"]]
    attacks = ["-" if label == "bonafide" else "A14" for label in labels]
    facts = zip(names, codec, source, attacks, labels, columns["subset"], columns["vocoder"], strict=True)
    key = [("LA_0023", n, c, s, a, k, "notrim", p, v, "-", "-", "-", "-") for n, c, s, a, k, p, v in facts]
    files = [write(tmp_path / "s.txt", zip(names, map(repr, arrays["df21/score"].tolist()), strict=True))]
    found = judge([*files, write(tmp_path / "df.txt", key)], tmp_path)["s"]
    cells = [[found.get(f"eer_by_vocoder_and_codec/{r}/{c}") for c in want["cols"]] for r in want["rows"]]
    np.testing.assert_allclose(grid(cells), 100 * grid(want["eval"]["EER"]), rtol=0, atol=1e-10, equal_nan=True)


def test_asvspoof5_track_2(arrays, expected, tmp_path, capsys):
    want = expected["asvspoof5_track2"]
    key = arrays["sasv/key"].tolist()
    cm, asv, sasv = (arrays[f"sasv/{kind}"].tolist() for kind in ("cm", "asv", "sasv"))
    kinds = [("bonafide", "target"), ("bonafide", "nontarget"), ("spoof", "spoof")]
    names = [(f"E_{index % 5:04d}", f"E_{index // 2:010d}") for index in range(len(key))]  # an utterance, two speakers
    rows = [(*n, repr(c), repr(a), repr(s)) for n, c, a, s in zip(names, cm, asv, sasv, strict=True)]
    header = "spk\tfilename\tcm-score\tasv-score\tsasv-score"
    scores = write(tmp_path / "sasv_score.tsv", rows, "\t", header)
    key_rows = [(*n, *kinds[k]) for n, k in zip(names, key, strict=True)]
    keys = write(tmp_path / "sasv_key.tsv", key_rows, "\t", "spk\tfilename\tcm-label\tasv-label")
    adcf, tdcf, teer = want["aDCF_min_tDCF_tEERpercent_default_asv_rates"]
    found = judge([scores, keys], tmp_path)["sasv_score"]
    assert found["a_dcf"] == pytest.approx(adcf, **EXACT)
    assert found["t_eer"] == pytest.approx(teer, abs=1e-6)
    assert found["min_tdcf_2021"] == pytest.approx(want["min_tDCF_with_own_asv_scores_if_Pfa_spoof_used"], **EXACT)
    assert f"a-DCF {adcf:.4f}" in capsys.readouterr().out.splitlines()
    published = judge([scores, keys, "published:asvspoof5"], tmp_path)["sasv_score"]
    assert published["min_tdcf_2021"] == pytest.approx(tdcf, **EXACT)
    write(tmp_path / "sasv_score.tsv", [(*row[:2], "-", "-", row[4]) for row in rows], "\t", header)
    assert set(judge([scores, keys], tmp_path)["sasv_score"]) == {"a_dcf", "num_target", "num_nontarget", "num_spoof"}
    write(tmp_path / "sasv_key.tsv", key_rows[:-1], "\t", "spk\tfilename\tcm-label\tasv-label")
    with pytest.raises(InputError, match=r"is in .*score\.tsv and not in .*key\.tsv"):
        judge([scores, keys], tmp_path)


def test_several_systems_are_compared(arrays, expected, tmp_path, capsys):
    files, protocol = [], ""
    trials = trials_of(arrays, "overlap")
    for name, sign in (("good", 1.0), ("weak", 0.2)):
        (tmp_path / name).mkdir()
        noise = np.random.default_rng(0).normal(0, 2, len(trials))
        system = [(*t[:4], sign * t[4] + (1 - sign) * n) for t, n in zip(trials, noise.tolist(), strict=True)]
        scores, protocol = as_2019(tmp_path / name, system)
        files.append(scores)
    found = judge([*files, "--protocol", protocol], tmp_path)
    assert list(found) == ["good-scores", "weak-scores"]
    assert found["good-scores"]["eer"] == pytest.approx(100 * expected["single_sets"]["cm"]["overlap"]["eer"], **EXACT)
    assert found["weak-scores"]["eer"] > found["good-scores"]["eer"]
    plots = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert {"det.png", "good-scores_histogram.png", "weak-scores_attacks.png"} <= plots
    rows = [line for line in capsys.readouterr().out.splitlines() if "-scores " in line and "│" in line]
    assert len(rows) == 2
    table = (tmp_path / "out" / "tables" / "good-scores_attack.csv").read_text().splitlines()
    assert table[0].startswith("attack,") and len(table) == 14


def test_the_samples_of_the_published_formats_are_recognised(shared, tmp_path):
    from audiolab.tasks.asvspoof.trial_lists import read_trials

    counts = {}
    for path in sorted((shared / "reference/asvspoof/formats").iterdir()):
        if "asv.score" in path.name or "asv.trial" in path.name or "_score" in path.name or "scores" in path.name:
            continue
        if path.name in ("score.ssl_2col.txt", "asvspoof5.sasv_key.tsv"):
            continue
        counts[path.name] = len(read_trials(path).trials)
    assert len(counts) == 11 and set(counts.values()) == {2, 3}


# --- what is wrong is said, with file and line ------------------------------------------------------------------------

KEY = [("sp1", f"u{i}", "-", "-" if i < 3 else "A07", "bonafide" if i < 3 else "spoof") for i in range(6)]
SCORES = [(f"u{i}", 5.0 - i) for i in range(6)]


def changed(rows, index, row):
    return [*rows[:index], *([row] if row else []), *rows[index + 1 :]]


@pytest.mark.parametrize(
    ("scores", "key", "message"),
    [
        (changed(SCORES, 2, ("u2", "nan")), KEY, r"s\.txt, line 3, column 2: the score is nan"),
        (changed(SCORES, 0, ("u0", "inf")), KEY, r"s\.txt, line 1, column 2: the score is inf"),
        (changed(SCORES, 1, ("u1", "high")), KEY, r"s\.txt, line 2, column 2: 'high' is not a number"),
        (changed(SCORES, 4, None), KEY, r"no score for 1 of 6 trials, the first is u4 \(.*k\.txt, line 5\)"),
        ([*SCORES, ("u9", 1.0)], KEY, r"s\.txt, line 7: trial u9 is not in .*k\.txt, as 1 of 7 are not"),
        ([*SCORES, ("u0", 1.0)], KEY, r"s\.txt, line 7: trial u0 is listed before, in line 1"),
        (SCORES, [*KEY, KEY[0]], r"k\.txt, line 7: trial u0 is listed before, in line 1"),
        (SCORES, changed(KEY, 3, ("sp1", "u3", "-", "A07", "fake")), r"k\.txt, line 4, column 5: 'fake' is no label"),
        (
            SCORES,
            changed(KEY, 3, ("sp1", "u3", "-", "-", "spoof")),
            r"k\.txt, line 4, column 4: .* contradicts",
        ),
        (SCORES, KEY[:3], r"k\.txt has 3 trials, none of them spoof"),
        ([(name, int(value > 2)) for name, value in SCORES], KEY, r"s\.txt: the scores of 6 trials hold fewer than 3"),
        (changed(SCORES, 2, ("u2", "A07", 1.0)), KEY, r"s\.txt, line 3: 3 columns, expected 2 \(id score\)"),
        ([(1, 2, 3)], KEY, r"s\.txt, line 1: '1 2 3' does not begin scores"),
        (SCORES, [(1, 2, 3)], r"k\.txt, line 1: '1 2 3' has 3 columns and begins no trial list"),
        ([], KEY, r"s\.txt is empty"),
    ],
)
def test_guards(scores, key, message, tmp_path):
    files = [write(tmp_path / "s.txt", scores), write(tmp_path / "k.txt", key)]
    with pytest.raises(InputError, match=message):
        judge(files, tmp_path)
    assert not (tmp_path / "out").exists()


FOUR = [(name, key[3], key[4], value) for (name, value), key in zip(SCORES, KEY, strict=True)]


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        ({"a": SCORES}, [], r"a has no labels \(two-column scores\): give the protocol"),
        (
            {"a": SCORES, "b": KEY, "c": [("x", "spoof", 1), ("x", "target", 1)]},
            [],
            r"c does not belong to .*b",
        ),
        ({"a": FOUR, "b": FOUR}, [], r"b holds scores, as .*a does: .*--protocol"),
        (
            {"a": changed(FOUR, 0, ("u0", "A07", "spoof", 1.0)), "b": KEY},
            [],
            r"a, line 1, column 3: u0 is",
        ),
        ({"a": SCORES, "b": KEY}, ["--asv", "published:asvspoof4"], "there are published:asvspoof5"),
        ({"a": SCORES, "b": KEY}, ["--subset", "eval"], "b has no subsets"),
        ({"a": SCORES, "b": KEY, "c": KEY, "d": KEY, "e": KEY}, [], "5 files are more than scores and protocol"),
        ({"a": SCORES}, ["--protocol", "nowhere.txt"], r"nowhere\.txt does not exist"),
    ],
)
def test_files_that_do_not_go_together(files, more, message, tmp_path):
    paths = [write(tmp_path / name, rows) for name, rows in files.items()]
    with pytest.raises(InputError, match=message):
        judge([*paths, *more], tmp_path)


def test_published_rates_are_labelled(tmp_path, capsys):
    files = [write(tmp_path / "s.txt", SCORES), write(tmp_path / "k.txt", KEY)]
    assert "min_tdcf_2021" not in judge(files, tmp_path)["s"]
    assert "ASV scores: none given, so no t-DCF" in capsys.readouterr().out
    assert "min_tdcf_2021" in judge([*files, "--asv", "published:asvspoof5"], tmp_path)["s"]
    assert "published:asvspoof5: published rates of asvspoof5" in capsys.readouterr().out


def test_a_task_is_needed(tmp_path, capsys):
    with pytest.raises(InputError, match="did you mean asvspoof"):
        score.main(["task=asvspof", "a.txt"])
    with pytest.raises(InputError, match="did you mean task= instead of tsk="):
        score.main(["tsk=asvspoof", "a.txt"])
    with pytest.raises(InputError, match="give task= with one of asvspoof"):
        score.main(["a.txt"])
    assert score.main(["--help"]) == 0
    assert "python -m audiolab.score task=<task> SCORES" in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot be written .*: give another folder with -o"):
        (tmp_path / "file").write_text("")
        judge_into = ["task=asvspoof", write(tmp_path / "s.txt", FOUR), "-o", str(tmp_path / "file" / "out")]
        score.main(judge_into)
