"""Anti-spoofing metrics against the official packages' recorded numbers, known answers and properties."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from audiolab.errors import InputError
from audiolab.metrics.bootstrap import _resampled_eer, eer_interval
from audiolab.metrics.calibration import Calibration, fit_calibration
from audiolab.metrics.spoofing import (
    ADCF_PAPER_COSTS,
    ASVSPOOF_COSTS,
    PUBLISHED_ASV_RATES,
    AsvErrorRates,
    SpoofingCosts,
    a_dcf,
    act_dcf,
    asv_error_rates,
    asv_table,
    attack_table,
    cllr,
    compute_det,
    compute_eer,
    evaluate,
    min_dcf,
    min_tdcf,
    t_eer,
)
from audiolab.metrics.tandem import tdcf_weights

CM_SETS = [
    *("separable", "overlap", "inverted", "tiny", "tiny3", "plateau", "la19_size"),
    *("ties_halfstep", "ties_at_boundary", "saturated_prob", "calibrated_llr", "miscalibrated_llr", "huge_llr"),
]
SASV_KINDS = ("sasv", "asv", "cm")
ASV_SETS = ["typical", "weak", "rejects_spoof", "rejects_all_spoof", "ties"]
EXACT = {"rel": 0, "abs": 1e-12}
ASV = PUBLISHED_ASV_RATES["asvspoof5"]


@pytest.fixture(scope="module")
def arrays(shared):
    with np.load(shared / "reference/asvspoof/eval_scores.npz") as file:
        return {key: file[key].astype(np.float64) if file[key].dtype.kind == "f" else file[key] for key in file.files}


@pytest.fixture(scope="module")
def expected(shared):
    return json.loads((shared / "reference/asvspoof/eval_expected.json").read_text())


def attack_names(codes):
    return np.array(["-" if code == 0 else f"A{code:02d}" for code in codes], dtype=object)


def cm_set(arrays, name):
    score, bonafide = arrays[f"cm/{name}/score"], arrays[f"cm/{name}/bonafide"] == 1
    return score, bonafide, attack_names(arrays[f"cm/{name}/attack"])


def asv_set(arrays, name):
    score, key = arrays[f"asv/{name}/score"], arrays[f"asv/{name}/key"]
    return [score[key == code] for code in range(3)]


def asv_keys(codes):
    return np.array(["target", "nontarget", "spoof"], dtype=object)[codes]


def grid(rows):
    return np.array([[float(value) for value in row] for row in rows])


def assert_tables_equal(ours, reference, tolerance=1e-12):
    np.testing.assert_allclose(ours, grid(reference), rtol=0, atol=tolerance, equal_nan=True)


# --- the recorded numbers of the official packages -------------------------------------------------------------------


@pytest.mark.parametrize("name", CM_SETS)
def test_countermeasure_metrics_equal_the_official_packages(arrays, expected, name):
    score, genuine, attack = cm_set(arrays, name)
    bonafide, spoof = score[genuine], score[~genuine]
    want = expected["single_sets"]["cm"][name]
    assert (bonafide.size, spoof.size) == (want["n_bonafide"], want["n_spoof"])
    assert compute_eer(bonafide, spoof) == pytest.approx((want["eer"], want["eer_threshold"]), **EXACT)
    assert min_dcf(bonafide, spoof) == pytest.approx((want["minDCF"], want["minDCF_threshold"]), **EXACT)
    assert act_dcf(bonafide, spoof) == pytest.approx(want["actDCF"], **EXACT)
    assert pytest.approx(want["actDCF_threshold"], **EXACT) == ASVSPOOF_COSTS.bayes_threshold
    assert cllr(bonafide, spoof) == pytest.approx(want["Cllr_stable"], rel=1e-9)
    assert evaluate(bonafide, spoof).eer_ties_spoof_first == pytest.approx(want["eer_if_ties_spoof_first"], **EXACT)
    table = attack_table(score, genuine, attack)
    for metric, key in (("eer", "eer_per_attack"), ("min_dcf", "minDCF_per_attack")):
        values = table.by_attack(metric)
        assert values.pop("Pooled") == pytest.approx(want[key[:3] if metric == "eer" else "minDCF"], **EXACT)
        assert values == pytest.approx(want[key], **EXACT)
    for name_of_attack, eer in want["eer_per_attack"].items():
        assert compute_eer(bonafide, score[attack == name_of_attack])[0] == pytest.approx(eer, **EXACT)


@pytest.mark.parametrize("name", ASV_SETS)
def test_asv_rates_and_tdcf_weights_equal_the_official_packages(arrays, expected, name):
    want = expected["single_sets"]["asv"][name]
    rates = asv_error_rates(*asv_set(arrays, name))
    names = ("Pfa_asv", "Pmiss_asv", "Pmiss_spoof_asv", "Pfa_spoof_asv", "threshold")
    assert tuple(asdict(rates).values()) == pytest.approx([want[key] for key in names], **EXACT)
    assert tdcf_weights(rates, "2021") == pytest.approx((want["C0"], want["C1"], want["C2"]), **EXACT)
    assert tdcf_weights(rates, "2019") == pytest.approx((0.0, want["legacy_C1"], want["legacy_C2"]), **EXACT)


@pytest.mark.parametrize("asv_name", ASV_SETS)
@pytest.mark.parametrize("cm_name", CM_SETS)
def test_tdcf_equals_the_official_packages(arrays, expected, cm_name, asv_name):
    score, genuine, attack = cm_set(arrays, cm_name)
    bonafide, spoof = score[genuine], score[~genuine]
    want = expected["single_sets"]["tdcf"][f"{cm_name}|{asv_name}"]
    asv = asv_error_rates(*asv_set(arrays, asv_name))
    for version, keys in (("2019", ("legacy2019", "legacy_2021pkg")), ("2021", ("revised2021", "revised_asvspoof5"))):
        if asv_name == "rejects_all_spoof":  # C2 = 0: 0/0 in the 2019 form, always 1 in the 2021 form
            with pytest.raises(InputError, match=r"C2 = 0.*rejects every spoof"):
                min_tdcf(bonafide, spoof, asv, version=version)
            continue
        for key in keys:
            reference = (want[key]["min_tDCF"], want[key]["threshold"])
            assert min_tdcf(bonafide, spoof, asv, version=version) == pytest.approx(reference, **EXACT)

    rates = asv_table(
        arrays[f"asv/{asv_name}/score"],
        asv_keys(arrays[f"asv/{asv_name}/key"]),
        attack_names(arrays[f"asv/{asv_name}/attack"]),
    )
    values = attack_table(score, genuine, attack, asv=rates, version="2019").by_attack("min_tdcf")
    for name in np.unique(attack[~genuine]):
        # The reference lists no value where that attack's C2 is 0, and an error for fewer than 3 distinct scores.
        reference = want["legacy2019_per_attack"].get(name, math.nan)
        reference = math.nan if isinstance(reference, dict) else reference
        assert values[name] == pytest.approx(reference, nan_ok=True, **EXACT)


@pytest.mark.parametrize("cm_name", ["overlap", "la19_size", "ties_halfstep"])
def test_the_2019_file_route(arrays, expected, cm_name):
    score, genuine, _ = cm_set(arrays, cm_name)
    want = expected["single_sets"]["calculate_tDCF_EER_2019"][f"{cm_name}|typical"]
    metrics = evaluate(score[genuine], score[~genuine], asv_error_rates(*asv_set(arrays, "typical")))
    assert 100 * metrics.eer == pytest.approx(want["eer_percent"], **EXACT)
    assert metrics.min_tdcf_2019 == pytest.approx(want["min_tDCF"], **EXACT)


def test_the_2019_text_report(arrays, expected):
    score, genuine, attack = cm_set(arrays, "overlap")
    metrics = evaluate(score[genuine], score[~genuine], asv_error_rates(*asv_set(arrays, "typical")))
    printed = dict(line.split("=") for line in expected["report_2019_overlap_typical"].splitlines() if "=" in line)
    printed = {key.strip(): value.split()[0] for key, value in printed.items()}
    ours = {"EER": f"{100 * metrics.eer:.9f}", "min-tDCF": f"{metrics.min_tdcf_2019:.9f}"}
    by_attack = attack_table(score, genuine, attack).by_attack("eer")
    ours |= {f"EER {name}": f"{100 * eer:.9f}" for name, eer in by_attack.items() if name != "Pooled"}
    assert ours == printed


@pytest.mark.parametrize("subset", ["eval", "progress", "hidden"])
def test_2021_la_tables(arrays, expected, subset):
    want = expected["la21_tables"]
    code = want["subset_names"].index(subset)
    codecs = np.array(want["codec_names"], dtype=object)
    asv_here, here = arrays["la21/asv_subset"] == code, arrays["la21/subset"] == code
    rates = asv_table(
        arrays["la21/asv_score"][asv_here],
        asv_keys(arrays["la21/asv_key"][asv_here]),
        attack_names(arrays["la21/asv_attack"][asv_here]),
        codecs[arrays["la21/asv_codec"][asv_here]],
    )
    attack = arrays["la21/attack"][here]
    table = attack_table(
        arrays["la21/score"][here],
        attack == 0,
        attack_names(attack),
        codecs[arrays["la21/codec"][here]],
        asv=rates,
        version="2021",
        conditions=want["codec_names"],
    )
    assert (list(table.attacks), list(table.conditions)) == (want["rows"], want["cols"])
    assert_tables_equal(table.eer, want[subset]["EER"])
    assert_tables_equal(table.min_tdcf, want[subset]["min_tDCF"])
    for row, row_name in enumerate(want["rows"]):
        for column, column_name in enumerate(want["cols"]):
            weights = [float(value) for value in want[subset]["C012"][row][column]]
            assert ((row_name, column_name) in rates) == (not math.isnan(weights[0]))
            if not math.isnan(weights[0]):
                assert tdcf_weights(rates[row_name, column_name], "2021") == pytest.approx(weights, **EXACT)


@pytest.mark.parametrize("subset", ["eval", "progress", "hidden"])
def test_2021_df_tables(arrays, expected, subset):
    want = expected["df21_tables"]
    here = arrays["df21/subset"] == want["subset_names"].index(subset)
    vocoder = arrays["df21/vocoder"][here]
    table = attack_table(
        arrays["df21/score"][here],
        vocoder == 0,
        np.array(want["vocoder_names"], dtype=object)[vocoder],
        np.array(want["compression_names"], dtype=object)[arrays["df21/compression"][here]],
        conditions=want["compression_names"],
    )
    rows = [table.attacks.index(name) for name in want["rows"]]
    assert_tables_equal(table.eer[rows], want[subset]["EER"])
    assert np.isnan(table.min_tdcf).all()


def test_asvspoof5_track_1_tables(arrays, expected):
    want = expected["asvspoof5_track1_tables"]
    attack = arrays["asv5/attack"]
    codec = np.array([f"C{code:02d}" for code in arrays["asv5/codec"]], dtype=object)
    table = attack_table(arrays["asv5/score"], attack == 0, attack_names(attack), codec)
    rows = [table.attacks.index(name.replace("pooled", "Pooled")) for name in want["rows"]]
    columns = [table.conditions.index(name.replace("pooled", "Pooled")) for name in want["cols"]]
    for metric, key in (("min_dcf", "minDCF"), ("eer", "EER"), ("cllr", "Cllr"), ("act_dcf", "actDCF")):
        assert_tables_equal(getattr(table, metric)[np.ix_(rows, columns)], want[key])


def test_asvspoof5_track_2(arrays, expected):
    want = expected["asvspoof5_track2"]
    sasv, asv, cm = ([arrays[f"sasv/{kind}"][arrays["sasv/key"] == key] for key in range(3)] for kind in SASV_KINDS)
    bonafide = np.concatenate(cm[:2])
    adcf, tdcf, teer_percent = want["aDCF_min_tDCF_tEERpercent_default_asv_rates"]
    assert a_dcf(*sasv) == pytest.approx((adcf, want["aDCF_threshold"]["min_a_dcf_thresh"]), **EXACT)
    assert a_dcf(*sasv, costs=ADCF_PAPER_COSTS) == pytest.approx(
        tuple(want["aDCF_class_default_costs"].values()), **EXACT
    )
    assert min_tdcf(bonafide, cm[2], ASV, version="2021")[0] == pytest.approx(tdcf, **EXACT)
    assert 100 * t_eer(bonafide, cm[2], *asv)[0] == pytest.approx(teer_percent, abs=1e-6)
    # With own ASV scores the official script passes the spoof miss rate; the right rate is the false-accept rate.
    metrics = evaluate(bonafide, cm[2], asv_scores=tuple(asv), sasv_scores=tuple(sasv))
    assert metrics.min_tdcf_2021 == pytest.approx(want["min_tDCF_with_own_asv_scores_if_Pfa_spoof_used"], **EXACT)
    assert (metrics.a_dcf, 100 * metrics.t_eer) == pytest.approx((adcf, teer_percent), abs=1e-6)


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overlap", "ties_halfstep", "inverted", "plateau", "la19_size"])
def test_evaluate_gives_what_the_single_functions_give(arrays, name):
    score, genuine, _ = cm_set(arrays, name)
    bonafide, spoof = score[genuine], score[~genuine]
    asv = asv_error_rates(*asv_set(arrays, "typical"))
    metrics = evaluate(bonafide, spoof, asv)
    assert (metrics.eer, metrics.eer_threshold) == compute_eer(bonafide, spoof)
    assert (metrics.min_dcf, metrics.min_dcf_threshold) == min_dcf(bonafide, spoof)
    assert (metrics.act_dcf, metrics.cllr) == (act_dcf(bonafide, spoof), cllr(bonafide, spoof))
    for version in ("2019", "2021"):
        both = getattr(metrics, f"min_tdcf_{version}"), getattr(metrics, f"min_tdcf_{version}_threshold")
        assert both == min_tdcf(bonafide, spoof, asv, version=version)
    assert metrics.eer_negated == (compute_eer(-bonafide, -spoof)[0] if metrics.eer > 0.5 else None)


def naive_det(bonafide, spoof):
    """The definition, one threshold at a time: stable sort of bona fide then spoof."""
    trials = [(score, 1) for score in bonafide] + [(score, 0) for score in spoof]
    trials.sort(key=lambda trial: trial[0])
    miss, false_alarm = [0.0], [1.0]
    for k in range(1, len(trials) + 1):
        rejected = sum(label for _, label in trials[:k])
        miss.append(rejected / len(bonafide))
        false_alarm.append((len(spoof) - (k - rejected)) / len(spoof))
    return miss, false_alarm, [trials[0][0] - 0.001, *(score for score, _ in trials)]


@pytest.mark.parametrize(("num_bonafide", "num_spoof"), [(30, 5), (5, 30), (12, 12)])
def test_det_and_its_minima_follow_their_definition_with_many_ties(num_bonafide, num_spoof):
    generator = np.random.default_rng(num_bonafide)
    for _ in range(20):
        bonafide, spoof = generator.integers(0, 6, num_bonafide), generator.integers(0, 6, num_spoof)
        for ours, reference in zip(compute_det(bonafide, spoof), naive_det(bonafide, spoof), strict=True):
            assert ours.tolist() == reference
        miss, false_alarm, thresholds = map(np.array, naive_det(bonafide, spoof))
        point = np.argmin(np.abs(miss - false_alarm))
        assert compute_eer(bonafide, spoof) == ((miss[point] + false_alarm[point]) / 2, thresholds[point])
        cost = tdcf_weights(ASV, "2021")
        tdcf = (cost.c0 + cost.c1 * miss + cost.c2 * false_alarm) / (cost.c0 + min(cost.c1, cost.c2))
        point = np.argmin(tdcf)
        assert min_tdcf(bonafide, spoof, ASV, version="2021") == (tdcf[point], thresholds[point])
        negated = compute_eer(-bonafide, -spoof)[0]
        assert evaluate(bonafide, spoof).eer_negated in (None, negated)
        shifted = compute_eer(bonafide + 1e-7, spoof)[0]
        assert evaluate(bonafide, spoof).eer_ties_spoof_first == shifted


def test_metrics_do_not_depend_on_the_order_or_monotone_maps(arrays):
    score, genuine, _ = cm_set(arrays, "ties_halfstep")
    bonafide, spoof = score[genuine], score[~genuine]
    generator = np.random.default_rng(1)
    moved = evaluate(generator.permutation(np.tanh(bonafide / 9)), generator.permutation(np.tanh(spoof / 9)), ASV)
    kept = evaluate(bonafide, spoof, ASV)
    for name in ("eer", "eer_ties_spoof_first", "min_dcf", "min_tdcf_2019", "min_tdcf_2021"):
        assert getattr(moved, name) == getattr(kept, name)


def test_inputs_are_not_changed():
    bonafide, spoof = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.5, -1.0])
    evaluate(bonafide, spoof, ASV)
    assert bonafide.tolist() == [3.0, 1.0, 2.0]
    assert spoof.tolist() == [0.0, 2.5, -1.0]


def test_t_eer_is_where_three_error_rates_meet():
    generator = np.random.default_rng(5)
    bonafide, spoof = generator.normal(1.5, 1, 4000), generator.normal(-1.5, 1, 4000)
    target, nontarget, asv_spoof = (generator.normal(mean, 1, 4000) for mean in (2, -2, 1))
    value, cm_threshold, asv_threshold = t_eer(bonafide, spoof, target, nontarget, asv_spoof)
    passed = np.mean(bonafide > cm_threshold)
    assert 1 - passed * np.mean(target > asv_threshold) == pytest.approx(value, abs=2e-3)
    assert passed * np.mean(nontarget > asv_threshold) == pytest.approx(value, abs=2e-3)
    assert np.mean(spoof > cm_threshold) * np.mean(asv_spoof > asv_threshold) == pytest.approx(value, abs=2e-3)


def test_t_eer_equals_the_exhaustive_search():
    """Every ASV threshold against every CM threshold, as the official code does it."""
    generator = np.random.default_rng(6)
    for _ in range(5):
        bonafide, spoof = generator.normal(1, 1, 40), generator.normal(-1, 1, 60)
        asv = [generator.normal(mean, 1, 30) for mean in (1.5, -1.5, 0.5)]
        miss, false_alarm, _ = compute_det(bonafide, spoof)
        nearest, reference = math.inf, math.nan
        thresholds = np.sort(np.concatenate(asv))
        for threshold in [thresholds[0] - 1, *thresholds]:
            p_miss, p_fa, p_spoof = (np.mean(scores > threshold) for scores in asv)
            p_miss = 1 - p_miss
            balance = miss + (1 - miss) * p_miss - 0.5 * (1 - miss) * p_fa - 0.5 * false_alarm * p_spoof
            point = np.argmin(np.abs(balance))
            if p_miss < 0.5 * (p_fa + p_spoof) and p_spoof > 0 and miss[point] < 1:
                gap = abs(p_fa / p_spoof - false_alarm[point] / (1 - miss[point]))
                if gap < nearest:
                    nearest, reference = gap, p_spoof * false_alarm[point]
        assert t_eer(bonafide, spoof, *asv)[0] == pytest.approx(reference, abs=1e-12)


# --- guards ----------------------------------------------------------------------------------------------------------

GOOD = np.array([0.1, 0.5, 0.9, 1.3])
FUNCTIONS = {
    "compute_det": compute_det,
    "compute_eer": compute_eer,
    "min_dcf": min_dcf,
    "act_dcf": act_dcf,
    "cllr": cllr,
    "evaluate": evaluate,
    "min_tdcf": lambda bonafide, spoof: min_tdcf(bonafide, spoof, ASV, version="2019"),
    "a_dcf": lambda bonafide, spoof: a_dcf(bonafide, bonafide - 1.0, spoof),
    "asv_error_rates": lambda target, spoof: asv_error_rates(target, target - 1.0, spoof),
    "t_eer": lambda bonafide, spoof: t_eer(bonafide, spoof, GOOD, GOOD - 1, GOOD),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(
    ("bonafide", "spoof", "message"),
    [
        ([], GOOD, "no .* scores"),
        (GOOD, [], "no .*spoof scores"),
        ([0.1, np.nan, 0.3], GOOD, r"1 of 3 .* nan or inf, the first at index 1"),
        (GOOD, [0.1, 0.2, -np.inf, np.inf], r"2 of 4 .*spoof scores are nan or inf, the first at index 2"),
        (GOOD, GOOD[:, None], r"shape \(4, 1\)"),
        (GOOD, GOOD.astype(np.float16), "half precision"),
        (GOOD, ["a", "b"], "pass numbers"),
    ],
)
def test_unusable_scores_are_refused(function, bonafide, spoof, message):
    with pytest.raises(InputError, match=message):
        function(np.asarray(bonafide), spoof)


@pytest.mark.parametrize("name", ["compute_det", "compute_eer", "min_dcf", "act_dcf", "cllr", "evaluate", "min_tdcf"])
def test_decisions_are_refused(name):
    with pytest.raises(InputError, match="fewer than 3 distinct"):
        FUNCTIONS[name](np.array([1, 1, 0, 1]), np.array([0, 0, 1]))
    with pytest.raises(InputError, match="fewer than 3 distinct"):
        FUNCTIONS[name](np.ones(5), np.ones(5))
    with pytest.raises(InputError, match="2 scores hold fewer than 3 distinct"):
        evaluate([1.0], [0.0])


def test_tdcf_guards():
    always_wrong = AsvErrorRates(p_fa=1.0, p_miss=1.0, p_miss_spoof=0.0, p_fa_spoof=1.0, threshold=0.0)
    for version in ("2019", "2021"):
        with pytest.raises(InputError, match=r"C1 = -0\.095"):
            min_tdcf(GOOD, GOOD - 1, always_wrong, version=version)
    with pytest.raises(InputError, match=r'"2020".*"2019"'):
        min_tdcf(GOOD, GOOD - 1, ASV, version="2020")
    with pytest.raises(InputError, match="must sum to one"):
        replace(ASV, p_fa_spoof=ASV.p_miss_spoof)
    with pytest.raises(InputError, match=r"p_miss is 2\.4: give it as a fraction"):
        replace(ASV, p_miss=2.4)


def test_costs_are_checked():
    with pytest.raises(InputError, match="sum to one"):
        SpoofingCosts(p_spoof=0.5)
    with pytest.raises(InputError, match="must be positive"):
        SpoofingCosts(c_miss=0.0)


def test_undefined_t_eer_is_refused():
    with pytest.raises(InputError, match="t-EER is undefined"):
        t_eer([0.0], [1.0, 2.0, 3.0], [-1.0], [0.0, 1.0], [2.0, 3.0])  # both systems upside down


def test_warnings_name_polarity_and_ties(arrays):
    warnings = {}
    for name in CM_SETS:
        score, genuine, _ = cm_set(arrays, name)
        warnings[name] = " ".join(evaluate(score[genuine], score[~genuine]).warnings())
    assert {name for name, text in warnings.items() if "above 50 %" in text} == {"inverted"}
    assert "turned it is 20.20 %" in warnings["inverted"]
    assert {name for name, text in warnings.items() if "Tied" in text} == {"ties_halfstep", "ties_at_boundary"}
    assert "24.00 %" in warnings["ties_halfstep"]
    assert "12.83 %" in warnings["ties_halfstep"]


def test_tables_name_the_trial_that_is_wrong():
    score, genuine, attack = [2.0, 3.0, 0.0, 1.0], [1, 1, 0, 0], ["-", "-", "A07", "A08"]
    with pytest.raises(InputError, match=r'condition of trial 2, "opus", is none of alaw, gsm'):
        attack_table(score, genuine, attack, ["alaw", "gsm", "opus", "gsm"], conditions=["alaw", "gsm"])
    with pytest.raises(InputError, match="4 scores and attack labels of shape"):
        attack_table(score, genuine, attack[:3])
    with pytest.raises(InputError, match="attack of trial 3"):
        attack_table(score, genuine, ["-", "-", "A07", None])
    with pytest.raises(InputError, match="rename the attack"):
        attack_table(score, genuine, ["-", "-", "A07", "Pooled"])
    with pytest.raises(InputError, match='ASV key of trial 1, "imposter"'):
        asv_table(score, ["target", "imposter", "spoof", "spoof"], attack)
    with pytest.raises(InputError, match="no spoof scores"):
        attack_table(score, np.ones(4), attack)
    with pytest.raises(InputError, match=r"none of the table's cells.*\('A07', 'Pooled'\)"):
        attack_table(score, genuine, attack, asv={"A07": ASV, "A08": ASV})


# --- intervals and calibration ---------------------------------------------------------------------------------------


def test_resampled_eer_equals_the_eer_of_the_copied_trials():
    generator = np.random.default_rng(2)
    for _ in range(200):
        genuine = generator.random(40) < 0.4
        score = generator.normal(genuine, 1.0).round(1)
        copies = generator.integers(0, 4, 40)
        repeated, labels = np.repeat(score, copies), np.repeat(genuine, copies)
        order = np.lexsort((~genuine, score))
        ours = _resampled_eer((2 * np.arange(40) + genuine)[order], copies)
        assert ours == pytest.approx(compute_eer(repeated[labels], repeated[~labels])[0], **EXACT)


def test_interval_is_reproducible_and_wider_for_speakers_than_for_trials():
    generator = np.random.default_rng(3)
    speaker = np.repeat(np.arange(30), 40)
    genuine = np.tile(np.arange(40) < 10, 30)
    # Speakers differ in how genuine they sound: trials of one are not independent evidence.
    score = generator.normal(np.where(genuine, 2.0 + generator.normal(0, 1.0, 30)[speaker], 0.0))

    def width(groups):
        low, high = eer_interval(score, genuine, groups, np.random.default_rng(0), num_resamples=300)
        assert low < compute_eer(score[genuine], score[~genuine])[0] < high
        return high - low

    assert width(speaker) > 1.5 * width(np.arange(score.size))
    assert width(speaker) == width(np.array([f"LA_{code:04d}" for code in speaker]))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(4)
    genuine = np.tile(np.arange(20) < 10, 25)
    speaker = np.repeat(np.arange(25), 20)
    truth = 0.5 * math.erfc(1 / math.sqrt(2) / math.sqrt(1.25))  # N(+-1, 1) scores, speaker offsets of variance 0.25
    covered = 0
    for _ in range(60):
        score = generator.normal(np.where(genuine, 1.0, -1.0)) + generator.normal(0, 0.5, 25)[speaker]
        low, high = eer_interval(score, genuine, speaker, generator, num_resamples=100)
        covered += low <= truth <= high
    assert covered >= 52  # 95 % of 60 is 57; percentile intervals of 25 speakers fall a little short of that


def test_interval_redraws_resamples_that_lack_a_class():
    score, genuine = [0.1, 0.9, 0.4, 0.3, 0.2, 0.8], [0, 0, 0, 0, 0, 1]
    low, high = eer_interval(score, genuine, list("aabbbc"), np.random.default_rng(0), num_resamples=50)
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_bonafide": [1, 1, 1, 1]}, "one class"),
        ({"speakers": ["a"] * 4}, "one speaker"),
        ({"speakers": ["a"] * 3}, "pass one a trial"),
        ({"is_bonafide": [1, 0, 1]}, "pass one label a trial"),
        ({"is_bonafide": ["bonafide", "bonafide", "spoof", "spoof"]}, "1 for bona fide"),
        ({"is_bonafide": [1, 1, 2, 2]}, "1 for bona fide"),
        ({"num_resamples": 10}, "num_resamples is 10"),
        ({"level": 95.0}, "level 95"),
    ],
)
def test_interval_guards(change, message):
    good = {
        "scores": GOOD,
        "is_bonafide": [1, 1, 0, 0],
        "speakers": list("abab"),
        "generator": np.random.default_rng(0),
    }
    with pytest.raises(InputError, match=message):
        eer_interval(**(good | change))


def test_calibration_mends_miscalibrated_scores_and_leaves_calibrated_ones(arrays):
    score, genuine, _ = cm_set(arrays, "miscalibrated_llr")
    mended = fit_calibration(score, genuine)(score)
    assert compute_eer(mended[genuine], mended[~genuine])[0] == compute_eer(score[genuine], score[~genuine])[0]
    assert cllr(mended[genuine], mended[~genuine]) < 0.5 * cllr(score[genuine], score[~genuine])
    score, genuine, _ = cm_set(arrays, "calibrated_llr")
    fitted = fit_calibration(score, genuine)
    assert (fitted.weights[0], fitted.offset) == pytest.approx((1.0, 0.0), abs=0.15)
    for scale, shift in ((1, 0), (1.1, 0), (0.9, 0), (1, 0.1), (1, -0.1)):  # the minimum of Cllr, smoothing apart
        other = scale * fitted(score) + shift
        best = cllr(fitted(score)[genuine], fitted(score)[~genuine])
        assert best <= cllr(other[genuine], other[~genuine]) + 1e-6


def test_calibration_stays_finite_without_dev_errors(arrays):
    score, genuine, _ = cm_set(arrays, "separable")
    calibration = fit_calibration(score, genuine)
    assert 0 < calibration.weights[0] < 20
    assert cllr(calibration(score)[genuine], calibration(score)[~genuine]) < 0.02


def test_fusion_beats_each_system():
    generator = np.random.default_rng(7)
    genuine = np.arange(60_000) < 20_000
    systems = generator.normal(np.where(genuine, 1.0, -1.0)[:, None], (1.0, 2.0)) * (1.0, 5.0) + (0.0, 3.0)
    fused = fit_calibration(systems, genuine)(systems)
    eers = [compute_eer(column[genuine], column[~genuine])[0] for column in (fused, *systems.T)]
    assert eers[0] < min(eers[1:])
    # True LLRs: 2 x for N(+-1, 1) and 2 x / 4 for N(+-1, 2), here stretched by 5 and moved by 3.
    assert fit_calibration(systems, genuine).weights == pytest.approx((2.0, 0.1), rel=0.1)


def test_calibration_guards():
    with pytest.raises(InputError, match="fitted on 2 systems and got scores of 1"):
        Calibration(weights=(1.0, 2.0), offset=0.0)(GOOD)
    with pytest.raises(InputError, match="one class"):
        fit_calibration(GOOD, np.ones(4))
    with pytest.raises(InputError, match="p_bonafide is 1"):
        fit_calibration(GOOD, [1, 0, 1, 0], p_bonafide=1)
