"""Many workers that commit to databases which take only so many commits a second, simulated.

A discrete-event simulation in which no storage is touched, of what ``transforms.boxes`` does:

- A worker takes one work range after the other, each of consecutive boxes of one partition, and any
  partition has the same chance. It works on the boxes one by one. Boxes share a commit until
  ``commit_boxes`` are held, ``commit_seconds`` have gone by since the last one, or the range ends.
- A commit reads for ``lead_s``, sees the manifest, needs ``window_s`` more, and replaces the
  manifest on the condition that it is still the one that was seen. Where another commit came
  between, it looks again and needs ``window_s`` again.
- A manifest is replaced ``writes_a_second`` times a second at most. A write that comes too early is
  refused, and tried again after a pause that doubles, as TensorStore does on "too many requests".

Plans are committed a range at a time and left out; ``plans`` shows one at a time.
"""

import dataclasses
import heapq
import random
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """What is simulated. Times are in seconds.

    Attributes:
        workers: Processes that work.
        partitions: Databases over which the ranges are spread.
        ranges: Work ranges altogether.
        range_boxes: Boxes of a range.
        box_seconds: Mean time of a box, its commit apart.
        spread: A box takes ``box_seconds * (1 ± spread)``, evenly distributed.
        commit_seconds: For how long boxes gather.
        commit_boxes: How many boxes share a commit at most.
        writes_a_second: Commits a second that a database takes.
        lead_s: From the beginning of a commit to its first look at the manifest.
        window_s: From a look at the manifest to the write that replaces it.
        plans: Whether each box's plan is committed by itself before the box is worked on.
        pause_s: Pause after the first refusal; each further one is twice as long.
        longest_pause_s: No pause is longer.
        retries: Refusals in a row after which TensorStore would give up.
        seed: Of the random numbers.
    """

    workers: int
    partitions: int
    ranges: int
    range_boxes: int
    box_seconds: float
    spread: float
    commit_seconds: float
    commit_boxes: int
    writes_a_second: float
    lead_s: float
    window_s: float
    plans: bool = False
    pause_s: float = 0.2
    longest_pause_s: float = 8.0
    retries: int = 8
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Committed:
    """A commit that came through.

    Attributes:
        time: When the manifest was replaced.
        partition: Where.
        first: Its first box.
        boxes: How many consecutive boxes; 0 where it is a plan's.
    """

    time: float
    partition: int
    first: int
    boxes: int


@dataclasses.dataclass(slots=True)
class Outcome:
    """What happened; seconds are sums over the workers.

    Attributes:
        worked_s: Work on boxes.
        committing_s: Commits, as long as they last undisturbed.
        waited_s: What commits took beyond that: refusals and conflicts.
        conflicts: Commits that found another manifest than they had seen.
        refusals: Writes that came too early.
        given_up: Commits of more refusals in a row than ``retries``; here they go on.
        commits: What came through, in the order of time.
    """

    worked_s: float = 0.0
    committing_s: float = 0.0
    waited_s: float = 0.0
    conflicts: int = 0
    refusals: int = 0
    given_up: int = 0
    commits: list[Committed] = dataclasses.field(default_factory=list)

    @property
    def all_s(self) -> float:
        """The workers' time altogether, from each one's first box to its last commit."""
        return self.worked_s + self.committing_s + self.waited_s

    @property
    def lost(self) -> float:
        """Share of the workers' time that is lost because others commit too."""
        return self.waited_s / self.all_s

    @property
    def throughput(self) -> float:
        """Boxes a second, against those of workers whose commits take no time at all."""
        return self.worked_s / self.all_s


@dataclasses.dataclass(slots=True)
class _Database:
    """A partition's manifest: how often it was replaced, and from when on it may be again."""

    version: int = 0
    free_at: float = 0.0


class _World:
    """The clock, the databases, and how many ranges are taken.

    What a worker does is a generator of the seconds that it lets pass.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.now = 0.0
        self.outcome = Outcome()
        self._random = random.Random(scene.seed)
        self._databases = [_Database() for _ in range(scene.partitions)]
        self._taken = 0

    def worker(self) -> Iterator[float]:
        """Range after range until none is left; workers do not begin at the same moment."""
        scene = self.scene
        yield self._random.random() * max(scene.box_seconds, scene.commit_seconds)
        while self._taken < scene.ranges:
            self._taken += 1
            yield from self._range((self._taken - 1) * scene.range_boxes)

    def _range(self, begin: int) -> Iterator[float]:
        scene, first = self.scene, begin
        partition = self._random.randrange(scene.partitions)
        # Time that has gone by for this worker and not yet on the clock: fewer events that way.
        ahead, since = 0.0, self.now
        for box in range(begin, begin + scene.range_boxes):
            if scene.plans:
                yield ahead
                ahead = 0.0
                yield from self._commit(partition, box, 0)
            seconds = scene.box_seconds * (1 + scene.spread * (2 * self._random.random() - 1))
            self.outcome.worked_s += seconds
            ahead += seconds
            held = box + 1 - first
            if (
                held >= scene.commit_boxes
                or self.now + ahead - since >= scene.commit_seconds
                or box + 1 == begin + scene.range_boxes
            ):
                yield ahead
                yield from self._commit(partition, first, held)
                ahead, since, first = 0.0, self.now, box + 1

    def _commit(self, partition: int, first: int, boxes: int) -> Iterator[float]:
        scene, outcome, database = self.scene, self.outcome, self._databases[partition]
        refusals = 0
        outcome.committing_s += scene.lead_s + scene.window_s
        yield scene.lead_s
        while True:
            seen = database.version
            yield scene.window_s
            while database.version == seen and self.now < database.free_at:
                pause = self._pause(refusals)
                refusals += 1
                outcome.waited_s += pause
                yield pause
            if database.version == seen:
                break
            outcome.conflicts += 1
            outcome.waited_s += scene.window_s
        outcome.refusals += refusals
        outcome.given_up += refusals > scene.retries
        database.version += 1
        database.free_at = self.now + 1 / scene.writes_a_second
        outcome.commits.append(Committed(self.now, partition, first, boxes))

    def _pause(self, refusals: int) -> float:
        longest = min(self.scene.longest_pause_s, self.scene.pause_s * 2.0 ** min(refusals, 30))
        return longest * (0.5 + 0.5 * self._random.random())


def simulate(scene: Scene) -> Outcome:
    """Let the workers do all ranges; the same scene has the same outcome."""
    world = _World(scene)
    workers = [world.worker() for _ in range(scene.workers)]
    due = [(next(worker), number) for number, worker in enumerate(workers)]
    heapq.heapify(due)
    while due:
        world.now, number = due[0]
        seconds = next(workers[number], None)
        if seconds is None:
            heapq.heappop(due)
        else:
            heapq.heapreplace(due, (world.now + seconds, number))
    return world.outcome
