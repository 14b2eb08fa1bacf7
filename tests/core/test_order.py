"""The promise, against every interleaving that hypothesis can think of.

`World` is a nats-server, a Facilitator and one worker, without sockets, clock or event loop. Its worker wires lanes
and session as `relay.worker.Dispatcher` does. Whatever is sent passes `World._send`, whatever is settled passes
`World._settle`: there the promise is checked, at every step.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import Phase as Phases
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.contract.subjects import Reason
from relay.contract.wire import Frame
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane, Update
from relay.core.session import Answered, Broken, Opened, Phase, Pushed, Session, Unpaired
from relay.core.verdict import Ack, DeadLetter, Outcome, Retry, judge, judge_drop

LANES = {"a": 0, "b": 0, "c": 1}
WINDOW = 2
MAX_ATTEMPTS = 3
BACKOFF_S = 3.0
REPLY_TIMEOUT_S = 60.0
PATIENCE_S = 1e9  # what the server owes always comes back in time; what happens otherwise is test_continuity's

UNFIT = DeadLetter(Reason.INVALID_SCHEMA, "never fit to be sent")
PUSH = '{"message_type":"V2JobRequest","uuid":"123","type":"job.new"}'
REPLIES = {
    "success": '{"status":"success","errors":[]}',
    "duplicate": '{"status":"error","errors":[{"type":"job.integrity_error","msg":"again"}]}',
    "not found": '{"status":"error","errors":[{"type":"job.not_found","msg":"who?"}]}',
    "permanent": '{"status":"error","errors":[{"type":"missing","msg":"what?"}]}',
}


@dataclass(frozen=True)
class Delivery:
    sequence: int
    consumer_sequence: int
    deliveries: int


@dataclass
class Consumer:
    """What the server knows of one lane's consumer. Redeliveries come in any order, as they really do."""

    unseen: deque[int] = field(default_factory=deque)
    pending: dict[int, int] = field(default_factory=dict)
    delivered: int = 0
    delivered_count: int = 0

    def next(self) -> Delivery:
        self.delivered = self.unseen.popleft()
        self.pending[self.delivered] = 0
        return self.again(self.delivered)

    def again(self, sequence: int) -> Delivery:
        self.pending[sequence] += 1
        self.delivered_count += 1
        return Delivery(sequence, self.delivered_count, self.pending[sequence])

    def state(self) -> ConsumerState:
        return ConsumerState(len(self.pending), self.delivered, self.delivered_count)


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.jobs: dict[int, str] = {}
        self.consumers = [Consumer(), Consumer()]
        self.socket: deque[int] = deque()  # what reached the Facilitator on this connection and has no reply yet
        self.unfit: set[int] = set()
        self.stored: set[int] = set()
        self.dead: set[int] = set()
        self.settled: set[int] = set()
        self.sends: list[int] = []
        self.attempts: Counter[int] = Counter()  # as they should be
        self.suspect: int | None = None
        self.blamed = self.excusable = False
        self.start_worker()

    # --- the worker, as relay.worker.Dispatcher wires it

    def start_worker(self) -> None:
        """A new worker on the old streams; what the one before it had in hand comes back after `ack_wait`."""
        self.session = Session(window=WINDOW, reply_timeout_s=REPLY_TIMEOUT_S, authentication="let me in")
        self.lanes = [Lane(number, Continuity(PATIENCE_S)) for number in (0, 1)]
        self.grave: deque[Update] = deque()
        self.settled_here: Counter[int] = Counter()
        self.socket.clear()
        self.attempts.clear()
        self.suspect, self.blamed, self.excusable = None, False, False
        for lane in (0, 1):
            self.start_pulling(lane)

    def start_pulling(self, lane: int) -> None:
        self.lanes[lane].continuity.began(self.consumers[lane].state(), self.now)

    def deliver(self, number: int, delivery: Delivery) -> None:
        lane = self.lanes[number]
        outcome = lane.outcome_of(delivery.sequence)
        if delivery.deliveries > 1 and outcome is None and delivery.sequence in self.dead:
            outcome = Outcome.DEAD_LETTERED
        lane.continuity.delivered(delivery.consumer_sequence, self.now)
        if outcome is None and not lane.redelivered(delivery.sequence, delivery, self.now):
            job = self.jobs[delivery.sequence]
            unfit = delivery.sequence in self.unfit
            frame, doom = (None, UNFIT) if unfit else (Frame(b"{}", "accepted"), None)
            lane.deliver(Update(number, delivery.sequence, job, delivery, frame, doom))
        self.pump()
        if outcome is not None:
            del self.consumers[number].pending[delivery.sequence]

    def look(self, number: int) -> None:
        """See whether a held lane may flow."""
        lane, state = self.lanes[number], self.consumers[number].state()
        if lane.continuity.held:
            lane.continuity.resolve(state, lane.count_up_to, self.now)
        self.pump()

    def pump(self) -> None:
        while self.session.room:
            heads = (head for lane in self.lanes if (head := lane.take(0.0)) is not None)
            if (update := next(heads, None)) is None:
                break
            self.session.sent(update, self.now)
            self._send(update)
        for lane in self.lanes:
            self.grave.extend(iter(lambda lane=lane: lane.take_doomed(0.0), None))

    def wake(self, seconds: float) -> None:
        self.now += seconds
        for lane in self.lanes:
            lane.wake(self.now)
        self.pump()

    def bury(self, *, written: bool, term_lost: bool = False) -> None:
        """Write the next dead letter, or fail to."""
        update = self.grave.popleft()
        self._check_turn(update)
        if written:
            self.dead.add(update.sequence)
            self._settle(update, Outcome.DEAD_LETTERED, lost=term_lost)
        else:
            self.lanes[update.lane].retry(update, self.now + BACKOFF_S)
        self.pump()

    def receive(self, message: str, *, ack_lost: bool = False) -> None:
        match self.session.received(message, self.now):
            case Answered(update, reply):
                self._judge(update, reply, ack_lost=ack_lost)
                self.pump()
            case Opened(suspect, blamed):
                if suspect is not None:
                    self._try_again(suspect, blamed=blamed)
                self.pump()
            case Broken():
                self.lose(1002)
            case Pushed() | Unpaired():
                pass

    def _judge(self, update: Update, reply, *, ack_lost: bool) -> None:
        lane = self.lanes[update.lane]
        match judge(reply, update.attempts + 1, MAX_ATTEMPTS):
            case Ack(outcome):
                self._settle(update, outcome, lost=ack_lost)
            case Retry():
                update.attempts += 1
                lane.retry(update, self.now + BACKOFF_S)
            case DeadLetter() as doom:
                update.attempts += 1
                update.doom = doom
                lane.put_back(update)

    def _try_again(self, suspect: Update, *, blamed: bool) -> None:
        if blamed:
            suspect.attempts += 1
            verdict = judge_drop(suspect.attempts, MAX_ATTEMPTS)
            if isinstance(verdict, DeadLetter):
                suspect.doom = verdict
                self.suspect = None
                self.session.absolve()
                self.lanes[suspect.lane].put_back(suspect)
                return
        self.session.probe(self.now)
        self._send(suspect, alone=True)

    # --- the Facilitator and the way there

    def reply(self, kind: str, *, ack_lost: bool = False) -> None:
        """Answer the oldest update of the connection; one that is stored is always a duplicate."""
        sequence = self.socket.popleft()
        kind = "duplicate" if sequence in self.stored else kind
        if kind == "success":
            self.stored.add(sequence)
        elif kind != "duplicate":
            self.attempts[sequence] += 1
        self.suspect = None
        self.receive(REPLIES[kind], ack_lost=ack_lost)

    def stall(self) -> None:
        """No answer comes for as long as one is waited for."""
        self.now += REPLY_TIMEOUT_S
        if self.session.overdue(self.now) is not None:
            self.receive(REPLIES["success"])  # too late
            self.lose(1002)

    def drop(self, code: int | None, *, stored: bool) -> None:
        """The connection goes away; the oldest update may have been stored before."""
        if self.socket and stored:
            self.stored.add(self.socket[0])
        if self.socket and code in (None, 1009):
            self.excusable = self.suspect is None
            self.suspect, self.blamed = self.socket[0], True
        self.lose(code)

    def lose(self, code: int | None) -> None:
        self.socket.clear()
        lost = self.session.closed(code)
        assert self.suspect == (lost.suspect and lost.suspect.sequence)
        for update in lost.unanswered:
            self.lanes[update.lane].put_back(update)

    def connect(self, how: str) -> None:
        """Connect, or fail in one of the two ways in which an outage lets one fail."""
        if how != "let in":
            self.blamed = self.blamed and not self.excusable
        if how == "no connection":
            self.session.failed_to_open()
            return
        self.session.opened(self.now)
        if how == "refused":
            self.session.received(REPLIES["permanent"], self.now)
        if how != "let in":
            self.session.closed(None)
            return
        if self.suspect is not None and self.blamed:
            self.attempts[self.suspect] += 1
        self.blamed = False
        self.receive(REPLIES["success"])

    # --- the promise

    def _check_turn(self, update: Update) -> None:
        earlier = {n for n in self.jobs if n < update.sequence and self.jobs[n] == update.job}
        assert set() == earlier - self.settled, "let out before an earlier update of its job was settled"

    def _send(self, update: Update, *, alone: bool = False) -> None:
        self._check_turn(update)
        assert 0 == self.settled_here[update.sequence], "sent although it was settled"
        assert (update.sequence if alone else None) == self.suspect, "sent while a suspect must be alone"
        self.socket.append(update.sequence)
        self.sends.append(update.sequence)
        assert len(self.socket) <= (1 if alone else WINDOW)

    def _settle(self, update: Update, outcome: Outcome, *, lost: bool) -> None:
        self.settled_here[update.sequence] += 1
        assert 1 == self.settled_here[update.sequence], "settled twice"
        assert (outcome is Outcome.DEAD_LETTERED) == (update.sequence in self.dead)
        self.settled.add(update.sequence)
        self.lanes[update.lane].settle(update, outcome)
        if not lost:
            del self.consumers[update.lane].pending[update.sequence]

    # --- what a test says of it

    def publish(self, *jobs: str) -> None:
        for job in jobs:
            sequence = len(self.jobs) + 1
            self.jobs[sequence] = job
            self.consumers[LANES[job]].unseen.append(sequence)

    def deliver_all(self) -> None:
        """Deliver what is new, and again whatever is pending and not at hand."""
        for number, consumer in enumerate(self.consumers):
            at_hand = {update.sequence for update in self.lanes[number].at_hand()}
            for sequence in sorted(set(consumer.pending) - at_hand, reverse=True):
                self.deliver(number, consumer.again(sequence))
            while consumer.unseen:
                self.deliver(number, consumer.next())
            self.look(number)

    def calm_down(self) -> None:
        """Time passes, everybody is well, until nothing is left to do; bounded, because a deadlock never ends."""
        for _ in range(5 + 2 * len(self.jobs)):
            if not any(consumer.pending or consumer.unseen for consumer in self.consumers):
                return
            if self.session.phase is Phase.CLOSED:
                self.connect("let in")
            self.deliver_all()
            while self.socket:
                self.reply("success")
            while self.grave:
                self.bury(written=True)
            self.wake(2 * BACKOFF_S)


def connected(*jobs):
    world = World()
    world.connect("let in")
    world.publish(*jobs)
    return world


def test_a_lost_delivery_holds_the_lane_until_it_comes_back():
    """A newer update does not overtake an older one of its job whose delivery was lost."""
    world = connected("a", "a")
    consumer = world.consumers[0]
    world.look(0)
    consumer.next()
    world.deliver(0, consumer.next())
    world.look(0)
    before = list(world.sends)
    world.calm_down()
    assert ([], [1, 2]) == (before, world.sends)


def test_a_poison_update_goes_down_alone():
    """An update that drops every connection gains all the attempts, is sent alone after the first, and ends dead."""
    world = connected("a", "c")
    world.deliver_all()
    while world.attempts[1] < MAX_ATTEMPTS:
        world.drop(None, stored=False)
        world.connect("let in")
    assert ([1, 2, 1, 1, 2], {1: MAX_ATTEMPTS}) == (world.sends, dict(world.attempts))
    world.calm_down()
    assert ({1}, {2}) == (world.dead, world.stored)


def test_an_outage_costs_no_attempts():
    """However often the reconnect fails after a drop, all that was unanswered is sent again, unblamed, and settled."""
    world = connected("a", "c")
    world.deliver_all()
    world.drop(None, stored=True)
    for how in ["no connection", "dropped at authentication"] * MAX_ATTEMPTS:
        world.connect(how)
    world.calm_down()
    assert ([1, 2, 1, 2], {}, set()) == (world.sends, dict(world.attempts), world.dead)


FAILURES = st.lists(st.sampled_from(["no connection", "dropped at authentication", "refused"]), max_size=2)
LOST = st.sampled_from([False, False, False, True])


class Interleavings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(jobs=st.lists(st.sampled_from(sorted(LANES)), min_size=2, max_size=6))
    def begin(self, jobs):
        self.world.publish(*jobs)
        self.world.connect("let in")
        self.look()

    @rule(job=st.sampled_from(sorted(LANES)), unfit=st.booleans())
    def publish(self, job, unfit):
        self.world.publish(job)
        if unfit:
            self.world.unfit.add(len(self.world.jobs))

    @precondition(lambda self: any(consumer.unseen for consumer in self.world.consumers))
    @rule(data=st.data(), lost=LOST)
    def deliver(self, data, lost):
        lane = data.draw(st.sampled_from([n for n in (0, 1) if self.world.consumers[n].unseen]))
        delivery = self.world.consumers[lane].next()
        if not lost:
            self.world.deliver(lane, delivery)

    @precondition(lambda self: any(consumer.pending for consumer in self.world.consumers))
    @rule(data=st.data(), lost=LOST)
    def redeliver(self, data, lost):
        lane = data.draw(st.sampled_from([n for n in (0, 1) if self.world.consumers[n].pending]))
        delivery = self.world.consumers[lane].again(
            data.draw(st.sampled_from(sorted(self.world.consumers[lane].pending)))
        )
        if not lost:
            self.world.deliver(lane, delivery)

    @rule()
    def look(self):
        for lane in (0, 1):
            self.world.look(lane)

    @rule(lane=st.integers(0, 1))
    def pull_again(self, lane):
        self.world.start_pulling(lane)

    @precondition(lambda self: self.world.socket)
    @rule(kind=st.sampled_from(["success", "success", "not found", "permanent"]), ack_lost=st.booleans())
    def reply(self, kind, ack_lost):
        self.world.reply(kind, ack_lost=ack_lost)

    @precondition(lambda self: self.world.session.phase is not Phase.CLOSED)
    @rule()
    def push(self):
        self.world.receive(PUSH)

    @precondition(lambda self: self.world.session.phase is not Phase.CLOSED)
    @rule(code=st.sampled_from([None, None, 1009, 1012]), stored=st.booleans(), failures=FAILURES, back=st.booleans())
    def drop(self, code, stored, failures, back):
        self.world.drop(code, stored=stored)
        for how in failures:
            self.world.connect(how)
        if back:
            self.world.connect("let in")

    @precondition(lambda self: self.world.socket)
    @rule(stalled=st.booleans())
    def break_off(self, stalled):
        if stalled:
            self.world.stall()
        else:
            self.world.receive("<html>")

    @precondition(lambda self: self.world.session.phase is Phase.CLOSED)
    @rule()
    def connect(self):
        self.world.connect("let in")

    @rule(seconds=st.floats(0, 2 * BACKOFF_S))
    def wake(self, seconds):
        self.world.wake(seconds)

    @precondition(lambda self: self.world.grave)
    @rule(written=st.booleans(), term_lost=st.booleans())
    def bury(self, written, term_lost):
        self.world.bury(written=written, term_lost=term_lost)

    @rule(really=LOST)
    def replace_the_worker(self, really):
        if really:
            self.world.start_worker()

    @invariant()
    def only_its_own_faults_count_against_an_update(self):
        at_hand = {update.sequence: update.attempts for lane in self.world.lanes for update in lane.at_hand()}
        assert {sequence: self.world.attempts[sequence] for sequence in at_hand} == at_hand

    @invariant()
    def the_window_is_the_facilitators(self):
        assert len(self.world.socket) == self.world.session.unanswered

    def teardown(self):
        self.world.calm_down()
        assert set(self.world.jobs) == self.world.settled
        assert [{}, {}] == [consumer.pending for consumer in self.world.consumers]


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    phases=[phase for phase in Phases if phase is not Phases.explain],  # it takes a minute to say little
)
TestInterleavings.__doc__ = "In any interleaving each job's updates go in stream order, and each settles exactly once."
