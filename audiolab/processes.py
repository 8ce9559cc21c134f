"""One function on several new processes of this machine, as torchrun would start them, without its command line.

The parent hosts the rendezvous store on a port that the system chooses, so runs never clash. It learns at once of a
process that fails or dies, gives the others a moment to notice it themselves, and ends them. A parent that dies takes
its processes with it, whatever killed it.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, set_start_method
from multiprocessing.connection import Connection
from typing import Any

from audiolab.errors import InputError, OutOfMemory, Preempted, RunError
from audiolab.training.signals import leave_lost_terminal, stop_signals

GRACE_S = 10.0  # for the other processes to end by themselves after one has failed
_POLL_S = 0.5
_INTERRUPTED = 130
_GRACE_TO_WRITE_S = 600.0  # after a signal: for a step, a validation and a checkpoint
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ending:
    """How a process ended: with a result, an error of ours, a trace of another one, or by an exit code alone."""

    rank: int
    result: Any = None
    error: InputError | RunError | None = None
    trace: str = ""
    exit_code: int = 0

    @property
    def failed(self) -> bool:
        """Whether it ended in any other way than by returning."""
        return self.error is not None or bool(self.trace) or self.exit_code != 0


def on_processes(function: Callable[..., Any], num: int, *arguments: Any, go_on: str = "") -> Any:
    """Call `function` on `num` processes, with torchrun's environment variables; rank 0's result comes back.

    SIGINT and the `stop_signals` are passed on. Raises the first InputError or RunError of any
    process; RunError, which says which process and why, for one that was killed or failed otherwise; `go_on` is its
    last clause. Raises Preempted or KeyboardInterrupt when a signal has ended the processes.
    """
    from torch.distributed import TCPStore

    context = get_context("spawn")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    facts = {"WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": uuid.uuid4().hex}
    facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    threads = str(max(1, (os.cpu_count() or num) // num))
    children, pipes = [], []
    with _forwarding(children) as received:
        try:
            with _environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", threads)):
                for rank in range(num):
                    if received:
                        break
                    ours, theirs = context.Pipe(duplex=False)
                    own = {name: str(value) for name, value in {**facts, "RANK": rank, "LOCAL_RANK": rank}.items()}
                    child = context.Process(target=_work, args=(theirs, os.getpid(), own, function, arguments))
                    child.start()
                    theirs.close()
                    children.append(child)
                    pipes.append(ours)
            endings = _endings(children, pipes, received)
            for child in children if not any(ending.failed for ending in endings) else ():
                child.join(GRACE_S)  # exit handlers
        finally:
            for child in children:
                child.kill()
                child.join()
    return _outcome(endings, received, num, go_on)


def _endings(children: list[Any], pipes: list[Connection], received: list[int]) -> list[Ending]:
    """Wait for all processes, after a failure for `GRACE_S` at most; return how they ended, the first ones first."""
    endings: list[Ending] = []
    deadline_s = math.inf
    while len(endings) < len(children) and (left_s := deadline_s - time.monotonic()) > 0:
        done = {ending.rank for ending in endings}
        open_ranks = [rank for rank in range(len(children)) if rank not in done]
        # data workers hold copies of a dead process's pipe, so its end alone would not show: look now and then
        connection.wait([pipes[rank] for rank in open_ranks], min(left_s, _POLL_S))
        found = [ending for rank in open_ranks if (ending := _ending(rank, children[rank], pipes[rank]))]
        # of two that are noticed together, a death without a word comes before the error that it caused elsewhere
        endings += sorted(found, key=lambda ending: ending.exit_code == 0)
        if any(ending.failed for ending in found):
            deadline_s = min(deadline_s, time.monotonic() + (_GRACE_TO_WRITE_S if received else GRACE_S))
    return endings


def _ending(rank: int, child: Any, pipe: Connection) -> Ending | None:
    """Return how a process ended, None while it is at work."""
    exit_code = child.exitcode  # before the pipe: what was said before the end is then there
    try:
        if pipe.poll():
            return Ending(rank, **pipe.recv())
    except (EOFError, OSError):
        child.join()
        exit_code = child.exitcode
    return None if exit_code is None else Ending(rank, exit_code=exit_code or 1)


def _outcome(endings: list[Ending], received: list[int], num: int, go_on: str) -> Any:
    failures = [ending for ending in endings if ending.failed]
    own = next((ending.error for ending in failures if ending.error is not None), None)
    if signal.SIGINT in received or any(ending.exit_code == _INTERRUPTED for ending in failures):
        raise KeyboardInterrupt
    if received and (failures or len(endings) < num):
        if isinstance(own, Preempted):
            raise own
        raise Preempted(f"stopped by {signal.Signals(received[0]).name}{_clause(go_on)}")
    if not failures:
        return next(ending.result for ending in endings if ending.rank == 0)
    first = failures[0]
    if first.exit_code == 0 and own is not None:
        raise own
    which = f"process {first.rank} of {num} (counted from 0)"
    if first.trace:
        print(first.trace, file=sys.stderr, end="")
        raise RunError(
            f"{which} failed with {first.trace.strip().splitlines()[-1]}; its trace is above{_clause(go_on)}"
        )
    if first.exit_code < 0:
        name = signal.Signals(-first.exit_code).name
        cause = ": most likely the machine ran out of memory" if name == "SIGKILL" else ""
        raise RunError(f"{which} was killed by {name}{cause}{_clause(go_on)}")
    raise RunError(f"{which} ended with exit code {first.exit_code} without a word{_clause(go_on)}")


def _clause(go_on: str) -> str:
    return f"; {go_on}" if go_on else ""


def _work(
    pipe: Connection, parent: int, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Be one of the processes; runs in the child."""
    _die_with(parent)
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the parent only, which passes it on once
    set_start_method(None, force=True)  # data workers are forked, as everywhere else; a spawned one imports for seconds
    os.environ.update(environment)
    from audiolab.command import warn_on_terminal

    if environment["RANK"] == "0":  # it speaks for all
        warn_on_terminal()
    try:
        result = function(*arguments)
        leave_group()
        said = {"result": result if environment["RANK"] == "0" else None}
    except (InputError, RunError) as error:
        said = {"error": _plain(error)}
    except KeyboardInterrupt:
        said = {"exit_code": _INTERRUPTED}
    except BaseException:
        said = {"trace": traceback.format_exc()}
    sys.stdout.flush()
    try:
        pipe.send(said)
    except Exception:  # a result that is no plain value
        said = {"trace": traceback.format_exc()}
        pipe.send(said)
    pipe.close()
    if "result" not in said:
        os._exit(1)  # no exit handler of a broken process group may hang or abort


def _plain(error: InputError | RunError) -> InputError | RunError:
    """Return an error of ours with its sentence alone, as it can be sent to another process."""
    kind = next(kind for kind in (Preempted, OutOfMemory, RunError, InputError) if isinstance(error, kind))
    return kind(str(error))


def leave_group() -> None:
    """Leave the process group together; a process that goes first can make the others fail after they have finished."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


@contextmanager
def _forwarding(children: list[Any]) -> Iterator[list[int]]:
    """Context: signals to this process go to the children; a second interrupt kills them. Yields what was received."""
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        again = number == signal.SIGINT and number in received
        received.append(number)
        if number == signal.SIGHUP:
            leave_lost_terminal()
        for child in children:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(child.pid, signal.SIGKILL if again else number)

    stopping = stop_signals()  # none in another thread than the main one
    before = {number: signal.signal(number, forward) for number in ((signal.SIGINT, *stopping) if stopping else ())}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Context: environment variables for the processes that are started in it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
