"""Sweep tables: which jobs are averaged, and what is shown of each."""

from __future__ import annotations

import io

from rich.console import Console

from audiolab.reporting.tables import repeats, sweep_breakdowns, sweep_rows, sweep_table

HEADLINE = {"eer": "EER {:.2f} %"}


def job(augment: str, seed: int, eer: float, state: str = "finished") -> dict:
    metrics = {"eval": {"eer": eer, "codec/mp3/eer": 2 * eer}} if state == "finished" else {}
    return {"options": {"augment": augment, "seed": seed}, "state": state, "metrics": metrics}


JOBS = [job("none", 0, 1.0), job("none", 1, 3.0), job("codec", 0, 5.0), job("codec", 1, 0.0, "failed")]


def shown(table) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    return text.getvalue()


def test_only_jobs_that_differ_in_their_seed_are_averaged():
    assert [[j["options"]["seed"] for j in group] for group in repeats(JOBS)] == [[0, 1], [0]]
    text = shown(sweep_table(JOBS, ["augment", "seed"], HEADLINE, "sweep"))
    assert "2.00 ± 1.41" in text
    assert text.count("±") == 2  # the label and the one group with several finished jobs
    assert "failed" in text


def test_breakdowns_have_a_column_a_combination():
    (table,) = sweep_breakdowns(JOBS, ["augment", "seed"], HEADLINE, "sweep")
    text = shown(table)
    assert "eval by codec, EER (%)" in text
    assert "augment=none" in text and "augment=codec" in text
    row = next(line for line in text.splitlines() if "mp3" in line)
    assert "4.00 ± 2.83" in row and "10.00" in row


def test_rows_hold_every_metric():
    rows = sweep_rows(JOBS)
    assert rows["eval/codec/mp3/eer"].tolist()[:3] == [2.0, 6.0, 10.0]
    assert rows["state"].tolist()[-1] == "failed"


def test_rows_of_chosen_metrics_are_of_whatever_sets_there_are():
    jobs = [{"options": {"seed": 0}, "state": "finished", "metrics": {"clean": {"eer": 1.0}, "noisy": {"eer": 2.0}}}]
    assert sweep_rows([*jobs, *JOBS], HEADLINE).columns.tolist() == (
        ["seed", "state", "clean/eer", "noisy/eer", "augment", "eval/eer"]
    )
