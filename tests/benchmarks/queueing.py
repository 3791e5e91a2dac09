"""A discrete-event simulation of tasks that share pools of cores. Pure: its clock is a number.

A pool gives each task that runs in it one core at most, and divides itself evenly when there are more tasks than cores, as an
operating system does. A task is a generator: it yields what it wants next (`Use`, `Pause`, `Begin`, `Join`), and goes on once it
had that.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Pool:
    """Cores of one machine, or of several that do the same."""

    name: str
    cores: float
    used_seconds: float = 0.0
    """Core-seconds of work done."""
    running: "dict[Task, float]" = field(default_factory=dict)
    """The core-seconds that each task still wants."""

    @property
    def share(self) -> float:
        """How much of a core each task has now."""
        return min(1.0, self.cores / len(self.running)) if self.running else 0.0

    def next_end(self) -> float:
        """In how many seconds the first of its tasks is through."""
        return min(self.running.values()) / self.share if self.running else math.inf

    def pass_time(self, seconds: float) -> "list[Task]":
        """Let time pass; which tasks are through."""
        work = seconds * self.share
        self.used_seconds += work * len(self.running)
        through = [task for task, left in self.running.items() if left <= work * (1 + 1e-9) + 1e-12]
        for task in self.running:
            self.running[task] -= work
        for task in through:
            del self.running[task]
        return through


@dataclass(frozen=True, slots=True)
class Use:
    """So many seconds of one core of the pool."""

    pool: Pool
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """So many seconds of waiting, for a round trip or a disk."""

    seconds: float


@dataclass(eq=False)
class Task:
    """A generator under way."""

    steps: "Steps"
    over: bool = False


@dataclass(frozen=True, slots=True)
class Begin:
    """Another task begins, and is not waited for."""

    task: Task


@dataclass(frozen=True, slots=True)
class Join:
    """Wait until another task is over."""

    task: Task


Steps = Generator[Use | Pause | Begin | Join, None, None]


class Simulation:
    """Tasks and pools under way. It can be stopped at a time, looked at, and let run on."""

    def __init__(self, tasks: list[Task], pools: list[Pool]) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._pools = pools
        self._ready = list(tasks)
        self._pauses: dict[Task, float] = {}
        self._joined: list[tuple[Task, Task]] = []

    def run(self, until: float) -> None:
        """Go on until that time, or until nothing is left to do."""
        while self.now < until:
            while self._ready:
                self._resume(self._ready.pop())
            ends = [pool.next_end() for pool in self._pools] + [end - self.now for end in self._pauses.values()]
            step = min([*ends, until - self.now])
            if min(ends, default=math.inf) == math.inf:
                return
            self.now += step
            for pool in self._pools:
                self._ready += pool.pass_time(step)
            over = [task for task, end in self._pauses.items() if end <= self.now + 1e-12]
            for task in over:
                del self._pauses[task]
            self._ready += over

    def _resume(self, task: Task) -> None:
        """Let it go on to what it wants next."""
        match next(task.steps, None):
            case Use(pool, work) if work > 0:
                pool.running[task] = work
            case Pause(wait) if wait > 0:
                self._pauses[task] = self.now + wait
            case Begin(other):
                self._ready += [task, other]
            case Join(other) if not other.over:
                self._joined.append((task, other))
            case None:
                task.over = True
                self._ready += [waiting for waiting, other in self._joined if other is task]
                self._joined = [pair for pair in self._joined if pair[1] is not task]
            case _:  # nothing to wait for
                self._ready.append(task)
