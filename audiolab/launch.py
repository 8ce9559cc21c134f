"""One process for one device, else one per device; no worker ever sees Hydra.

Lightning's own launcher starts the command line again, which inside a Hydra sweep runs the whole sweep again. Here the
processes are started on a plain function (`processes.py`), and rank 0's result comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from audiolab.cluster import num_processes, rank

if TYPE_CHECKING:
    from audiolab.folder import RunFolder
    from audiolab.run_log import KeptWarnings


def launch(config: dict[str, Any]) -> dict[str, dict[str, float]] | None:
    """Check a composed config, make its run folder, train and evaluate; returns the metrics by set.

    A run that is finished already is only reported; one that was begun goes on. With `plan` nothing is written.
    """
    from audiolab.folder import RunFolder

    if config["plan"]:
        from audiolab import assemble, engine

        assemble.check(config)
        engine.plan(config)
        return None
    begun = RunFolder.begun(config)  # what it refuses is said before torch is imported
    if begun is not None and begun.results is not None:
        return resume(begun)
    with held(begun):
        return _begin(config)


def held(run: RunFolder | None) -> AbstractContextManager[None]:
    """Return the context in which this command has a run folder, if there is one, for itself."""
    from audiolab.lock import locked

    return locked(run.path) if run is not None and rank() == 0 else nullcontext()


def _begin(config: dict[str, Any]) -> dict[str, dict[str, float]]:
    from audiolab import assemble
    from audiolab.folder import RunFolder
    from audiolab.preflight.quick import before_run
    from audiolab.run_log import KeptWarnings
    from audiolab.training.preemption import Preemption

    assemble.check(config)
    num = num_processes(config["trainer"])
    with Preemption(RunFolder.path_of(config)), KeptWarnings() as before:
        data, task = assemble.prepare(config)
        if rank() == 0:
            before_run(config, data, task, num)
    return resume(RunFolder.create(config) if rank() == 0 else RunFolder.join(config), before)


def resume(run: RunFolder, before: KeptWarnings | None = None) -> dict[str, dict[str, float]]:
    """Train and evaluate what is left of a run; its run.log begins with the warnings that were given `before`."""
    run.require_whole_config()
    results = run.results
    if results is None:
        go_on = f"to go on: python -m audiolab.resume {run.path}"
        with held(run):
            from audiolab import assemble, engine

            assemble.check(run.config)  # it may have been edited by hand
            if before is not None:
                before.write_to(run.path / "run.log")
            results = in_processes(engine.train, num_processes(run.config["trainer"]), str(run.path), go_on=go_on)
    elif rank() == 0:
        print(f"{run.path} is finished already: its results follow; choose another name= to run again")
    if rank() == 0:
        from audiolab.results import report

        report(run)
    return results


def in_processes(function: Callable[..., Any], num: int, *arguments: Any, go_on: str = "") -> Any:
    """Call `function` here, or on `num` processes of this machine; rank 0's result comes back.

    `go_on` says, at the end of an error, how to go on after a process was killed.
    """
    from audiolab.processes import leave_group, on_processes

    if num > 1:
        return on_processes(function, num, *arguments, go_on=go_on)
    result = function(*arguments)
    leave_group()
    return result
