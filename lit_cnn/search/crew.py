"""Answers the workers of a search, whatever they run on, and replaces those that are gone.

What they run on is an `Engine`: processes of this machine, or of the nodes of a Ray cluster. Messages are JSON.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lit_cnn.core.errors import UsageError
from lit_cnn.core.signals import handled
from lit_cnn.search.study import Outcome
from lit_cnn.search.worker import Ended, Job
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.process import RunFailedError

_POLL = 0.5  # seconds
_UNTIL_CHECKED = 60.0  # seconds that workers are waited for, before the first of them begins
_MOST_FALSE_STARTS = 3
_UNTIL_KILLED = 60.0  # seconds that a worker has for its checkpoint


class Desk(Protocol):
    """Where jobs come from, and go to."""

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train, and nothing being trained."""

    def ask(self) -> Job | None:
        """Returns the next job; None if there is none, now or at all."""

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Notes a value; returns whether the job is to end."""

    def tell(self, name: str, ended: Ended) -> None:
        """Notes how a job ended."""

    def lose(self, name: str, how: str, is_its_own: bool = True) -> None:
        """Takes back a job whose process has ended."""


@dataclass(frozen=True)
class Gone:
    """How a worker has ended.

    Attributes:
        how: In words: `killed by SIGKILL`.
        is_its_own: Whether what it did may be why; not if its machine is gone.
    """

    how: str
    is_its_own: bool = True


class Worker(Protocol):
    """One that was started."""

    def send(self, answer: str) -> None:
        """Answers; that it is gone is heard next."""

    def stop(self) -> None:
        """Ends it after a checkpoint."""


class Engine(Protocol):
    """What workers run on.

    Attributes:
        num_workers: How many there are to be.
        spreads: Whether a worker may be on another machine.
        sends_elsewhere: Whether a worker may be where the search's folder is not, and sends its runs itself.
    """

    num_workers: int
    spreads: bool
    sends_elsewhere: bool

    def start(self, number: int) -> Any:
        """Starts a worker, the n-th from 0 on."""

    def hear(self, workers: Sequence[Any], seconds: float) -> Sequence[tuple[Any, str | Gone]]:
        """Returns what workers say within some seconds: a message, or that one is gone."""

    def elsewhere(self, worker: Any) -> str:
        """Returns the address of the machine that a worker runs on; "" for this one."""

    def close(self, workers: Sequence[Any]) -> None:
        """Ends workers at once."""


@dataclass
class _Member:
    worker: Worker
    number: int
    job: str | None = None
    waits: bool = False
    has_asked: bool = False
    is_checked: bool = False


class Crew:
    """Starts workers, answers them, and ends them.

    Args:
        engine: What they run on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._members: list[_Member] = []
        self._false_starts = 0
        self._signals: list[int] = []
        self._images: tuple[Sequence[str], str, str] | None = None
        self._refill()

    def check(self, arguments: Sequence[str], digest: str, root: str) -> None:
        """Makes each worker on another machine look for the images there; those that come later do so too.

        Args:
            arguments: Options of `lit-cnn fit`, of a trial.
            digest: Of the images that are here.
            root: Where they are.

        Raises:
            UsageError: If one does not find the same, or could not train such a trial.
            RunFailedError: If workers end as soon as they are started.
        """
        if not self.engine.spreads:
            return
        self._images = (arguments, digest, root)
        began = time.monotonic()
        while not all(member.waits for member in self._members):
            if any(member.waits for member in self._members) and time.monotonic() - began > _UNTIL_CHECKED:
                return  # the others come as soon as there is room for them
            self._refill()
            self._listen(None)

    def serve(self, desk: Desk, place: Path, watch: Callable[[], None]) -> None:
        """Answers the workers until the desk is done.

        Args:
            desk: Who has the jobs.
            place: The folder of the search, for the workers' log.
            watch: Called twice a second.

        Raises:
            RunFailedError: If workers end as soon as they are started.
            RunInterrupted: If a signal stopped the search, after the checkpoints of the workers.
        """
        with handled(self._note):
            while not desk.is_done and not self._signals:
                self._refill()
                self._answer(desk, place)
                watch()
            if self._signals:
                self._end(desk, place)
                raise RunInterrupted(self._signals[0])

    def close(self) -> None:
        """Ends all workers at once."""
        self.engine.close([member.worker for member in self._members])
        self._members = []

    def _note(self, number: int, frame: Any) -> None:
        self._signals.append(number)

    def _refill(self) -> None:
        for number in set(range(self.engine.num_workers)) - {member.number for member in self._members}:
            self._members.append(_Member(self.engine.start(number), number))

    def _answer(self, desk: Desk, place: Path) -> None:
        """Answers what workers say within half a second."""
        self._listen(desk)
        for member in [member for member in self._members if member.waits]:
            self._hand_out(member, desk, place)

    def _listen(self, desk: Desk | None) -> None:
        """Hears what workers say within half a second; who asks what to train has to wait."""
        members = {id(member.worker): member for member in self._members}
        for worker, said in self.engine.hear([member.worker for member in self._members], _POLL):
            if isinstance(said, Gone):
                self._drop(members[id(worker)], said, desk)
            else:
                self._hear(members[id(worker)], json.loads(said), desk)

    def _hear(self, member: _Member, message: Any, desk: Desk | None) -> None:
        answer: Any = True
        if message["call"] == "ask":
            member.has_asked = True
            self._false_starts = 0
            if self._images is None or member.is_checked or not self.engine.elsewhere(member.worker):
                member.waits = True
                return
            answer = {"check": self._images[0]}
        elif message["call"] == "checked":
            self._check_found(member, message)
        elif desk is not None and message["call"] == "report":
            answer = desk.report(message["name"], message["epoch"], message["value"])
        elif desk is not None:
            member.job = None
            desk.tell(message["name"], Ended(Outcome(**message["ended"]["outcome"]), message["ended"]["metrics"]))
        member.worker.send(json.dumps(answer))

    def _check_found(self, member: _Member, message: Any) -> None:
        assert self._images is not None
        host = self.engine.elsewhere(member.worker)
        if mistake := message.get("mistake"):
            option, value, reason, remedy = mistake
            raise UsageError(option, value, f"on node {host}: {reason}", remedy)
        if message["digest"] != self._images[1]:
            reason = f"node {host} has other images there"
            raise UsageError("root", self._images[2], reason, "copy the same folder to all nodes")
        member.is_checked = True

    def _hand_out(self, member: _Member, desk: Desk, place: Path) -> None:
        job = None if self._signals else desk.ask()
        if job is None and not (self._signals or desk.is_done):
            return  # another one's job may come back
        member.waits = False
        member.job = job.name if job is not None else None
        member.worker.send(json.dumps({"job": None if job is None else asdict(job), "place": str(place)}))

    def _drop(self, member: _Member, gone: Gone, desk: Desk | None) -> None:
        """Takes a worker that is gone out of the crew, and its job back."""
        self._members.remove(member)
        if self._signals:
            return  # it was ended; what it had begun is gone on with by a resume
        if desk is not None and member.job is not None:
            desk.lose(member.job, gone.how, gone.is_its_own)
        elif not member.has_asked and gone.is_its_own:
            self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS:
                raise RunFailedError(f"worker processes end as they start ({gone.how})")

    def _end(self, desk: Desk, place: Path) -> None:
        """Ends the workers after a checkpoint; at a second signal, or after a minute, at once."""
        for member in self._members:
            member.worker.stop()
        began = time.monotonic()
        while self._members and len(self._signals) < 2 and time.monotonic() - began < _UNTIL_KILLED:
            self._answer(desk, place)
        self.close()
