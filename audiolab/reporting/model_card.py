"""The README.md of exported weights: what they are, how good, how to use them; facts of the run only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from audiolab.reporting.tables import headline_lines

_DATA = ("layout", "subset", "root")  # where a data section has them


def model_card(
    config: Mapping[str, Any],
    facts: Mapping[str, str],
    results: Mapping[str, Mapping[str, float]] | None,
    headline: Mapping[str, str],
    num_values: int,
) -> str:
    """Return the card in Markdown: task, model, data, metrics of every set, and the commands that use the folder.

    `config` is the portable one, `facts` are what the metadata of the weights say, `results` None for a run that is not
    finished.

    >>> facts = {"task": "t", "recipe": "r", "name": "n", "audiolab": "1", "config_sha256": "0", "checkpoint": "best"}
    >>> config = {"seed": 0, "model": {"_target_": "a.Net"}, "data": {"_target_": "a.Data"}}
    >>> card = model_card(config, facts, {"dev": {"eer": 12.341}}, {"eer": "EER {:.2f} %"}, 1234)
    >>> [line for line in card.splitlines() if line.startswith(("#", "- ", "| model"))]
    ['# t: n', '| model | Net, 1,234 stored values (`model.json`) |', '## Metrics', '- dev: EER 12.34 %', '## Use']
    """
    rows = {
        "task": facts["task"],
        "recipe": f"{facts['recipe']}, seed {config.get('seed')}",
        "model": f"{_class(config['model'])}, {num_values:,} stored values (`model.json`)",
        "loss": _class(config.get("loss")),
        "data": ", ".join([_class(config["data"]), *(str(config["data"][k]) for k in _DATA if config["data"].get(k))]),
        "weights": f"`checkpoints/model.safetensors`, those of `{facts['checkpoint']}`; no optimiser state",
        "audiolab": facts["audiolab"],
        "config sha256": f"`{facts['config_sha256']}`",
    }
    lines = [
        f"# {facts['task']}: {facts['name']}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]
    lines += ["", "## Metrics", ""]
    if results is None:
        lines += ["None: the run was not finished when it was exported."]
    for set_name, metrics in (results or {}).items():
        lines += [f"- {set_name}: {', '.join(headline_lines(metrics, headline))}"]
    lines += [
        "",
        "`metrics.json` has all of them, `code.json` the commit and the versions, `checkpoints/calibration.json` what",
        "was fitted on development sets; `sha256sum --check SHA256SUMS` checks the files.",
        "",
        "## Use",
        "",
        "With audiolab installed; `.` is this folder.",
        "",
        "```",
        "python -m audiolab.predict . my.wav folder/ -o out/",
        "python -m audiolab.test . data=<corpus> data.root=<folder>",
        "python -m audiolab.run ... init.weights=.              # start another run from these weights",
        "```",
        "",
        "```python",
        "import audiolab",
        "",
        'task = audiolab.load(".")                              # in eval mode',
        "task.infer(waveform, sample_rate)                      # (time,) in float, Hz",
        "```",
        "",
    ]
    return "\n".join(lines)


def _class(section: Mapping[str, Any] | None) -> str:
    return str((section or {}).get("_target_", "none")).rpartition(".")[2]
