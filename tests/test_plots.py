"""Figures say what the numbers say: every check reads the drawn artists back."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from scipy.special import ndtr

from audiolab.errors import InputError
from audiolab.metrics.spoofing import compute_det, compute_eer
from audiolab.reporting.plots import DPI, attack_bars, det_plot, score_histogram


def scores(seed=0, shift=2.5, num_bonafide=200, num_spoof=900):
    generator = np.random.default_rng(seed)
    return generator.normal(shift, 1.0, num_bonafide), generator.normal(0.0, 1.0, num_spoof)


def legend_texts(figure):
    legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    return [text.get_text() for text in legend.get_texts()]


def lines_with_data(axes):
    return [line for line in axes.lines if len(line.get_xdata())]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: det_plot({"A": scores(0), "B": scores(1, 1.0)}, title="DET"),
        lambda: score_histogram(*scores(), threshold=1.0, title="Scores"),
        lambda: attack_bars(["A07", "A08"], [0.1, 0.2], [(0.05, 0.15), (0.1, 0.3)], 0.15, title="EER by attack"),
    ],
)
def test_figures_are_saved_at_150_dpi_with_title_and_labels_inside(figure, tmp_path):
    figure = figure()
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.savefig(tmp_path / "figure.png")
    pixels = imread(tmp_path / "figure.png")
    assert pixels.shape[:2] == tuple(int(inches * DPI) for inches in figure.get_size_inches()[::-1])
    ink = (pixels[..., :3] < 0.99).any(axis=-1)
    assert ink.mean() > 0.02
    border = np.concatenate((ink[0], ink[-1], ink[:, 0], ink[:, -1]))
    assert not border.any()  # nothing is cut off
    axes = figure.axes[0]
    assert axes.get_title()
    assert "%" in axes.get_xlabel() or "Score" in axes.get_xlabel()


def test_drawing_leaves_pyplot_alone():
    det_plot({"A": scores()})
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_det_curve_passes_through_every_operating_point():
    bonafide, spoof = scores(num_bonafide=40, num_spoof=70)
    figure = det_plot({"GMM": (bonafide, spoof)})
    _, curve, mark = lines_with_data(figure.axes[0])
    x, y = ndtr(curve.get_xdata()), ndtr(curve.get_ydata())
    assert ((np.diff(x) == 0) ^ (np.diff(y) == 0)).all()  # a staircase: one rate changes at a time
    miss, false_alarm, _ = compute_det(bonafide, spoof)
    for rate_x, rate_y in zip(false_alarm, miss, strict=True):
        on_step = (
            (np.minimum(x[:-1], x[1:]) <= rate_x + 1e-9)
            & (rate_x - 1e-9 <= np.maximum(x[:-1], x[1:]))
            & (np.minimum(y[:-1], y[1:]) <= rate_y + 1e-9)
            & (rate_y - 1e-9 <= np.maximum(y[:-1], y[1:]))
        )
        assert on_step.any()
    eer, _ = compute_eer(bonafide, spoof)
    assert ndtr([mark.get_xdata()[0], mark.get_ydata()[0]]).mean() == pytest.approx(eer, abs=1e-12)
    assert legend_texts(figure) == [f"GMM: EER {100 * eer:.2f} %"]


def test_det_axes_are_probit_in_percent_and_widen_for_bad_systems():
    axes = det_plot({"good": scores()}).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "30", "40", "50"]
    np.testing.assert_allclose(100 * ndtr(axes.get_xticks()), [float(label) for label in labels], rtol=1e-9)
    np.testing.assert_allclose(ndtr(axes.get_ylim()), (0.001, 0.5), rtol=1e-9)
    wide = det_plot({"good": scores(), "turned": scores(shift=-2.5)}).axes[0]
    np.testing.assert_allclose(ndtr(wide.get_xlim()), (0.001, 0.99), rtol=1e-9)


def test_det_keeps_the_mark_of_a_perfect_system_on_the_axes():
    axes = det_plot({"perfect": scores(shift=50.0)}).axes[0]
    mark = lines_with_data(axes)[-1]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (axes.get_xlim()[0], axes.get_ylim()[0])


def test_many_systems_are_all_told_apart():
    figure = det_plot({f"system {index}": scores(index) for index in range(9)})
    curves = [line for line in lines_with_data(figure.axes[0])[1:] if line.get_marker() == "None"]
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == len(curves) == 9
    assert len(legend_texts(figure)) == 9


def test_histogram_normalises_each_class_and_counts_the_errors():
    bonafide, spoof = scores()
    figure = score_histogram(bonafide, spoof, threshold=1.3)
    outlines = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    for patch in outlines:
        values, edges, _ = patch.get_data()
        assert np.sum(values * np.diff(edges)) == pytest.approx(1.0)
    assert len(outlines) == 2
    np.testing.assert_array_equal(outlines[0].get_data().edges, outlines[1].get_data().edges)
    assert legend_texts(figure) == [
        f"Bona fide (200): {100 * np.mean(bonafide < 1.3):.2f} % rejected",
        f"Spoofed (900): {100 * np.mean(spoof >= 1.3):.2f} % accepted",
        "Threshold 1.3",
    ]
    assert figure.axes[0].lines[0].get_xdata() == [1.3, 1.3]
    assert legend_texts(score_histogram(bonafide, spoof)) == ["Bona fide (200)", "Spoofed (900)"]


def test_bars_are_percent_with_intervals_and_pooled_line():
    names, values, intervals = ["A07", "A08", "A09"], [0.02, 0.1, 0.05], [(0.01, 0.04), (0.08, 0.13), (0.03, 0.07)]
    figure = attack_bars(names, values, intervals, overall=0.06)
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([2.0, 10.0, 5.0])
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first attack is on top
    spans = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert np.array(spans) == pytest.approx(100 * np.array(intervals))
    assert legend_texts(figure) == ["Pooled 6.00"]
    assert [text.get_text() for text in axes.texts] == ["2.00", "10.00", "5.00"]
    assert axes.get_xlabel() == "EER (%) with 95 % interval"


def test_bars_sorted_with_missing_attack_and_costs():
    axes = attack_bars(["A07", "A08", "A09"], [0.2, np.nan, 0.4], quantity="min t-DCF", percent=False, sort=True).axes[
        0
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A09", "A07", "A08"]
    assert [text.get_text() for text in axes.texts] == ["0.400", "0.200", "no value"]
    assert axes.get_xlabel() == "min t-DCF"


def test_zero_everywhere_still_has_an_axis():
    assert attack_bars(["A07", "A08"], [0.0, 0.0], overall=0.0).axes[0].get_xlim()[1] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: det_plot({}), "no system"),
        (lambda: det_plot({"A": ([1.0, 2.0, np.nan], [0.0, 1.0])}), "nan or inf"),
        (lambda: score_histogram([], [1.0]), "no bona fide scores"),
        (lambda: attack_bars(["A07"], [0.1, 0.2]), "There are 1 attacks"),
        (lambda: attack_bars(["A07"], [0.1], intervals=[0.1, 0.2]), r"intervals of shape \(2,\)"),
        (lambda: attack_bars([], []), "There are 0 attacks"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
