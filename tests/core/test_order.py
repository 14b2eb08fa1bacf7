"""Each job's updates are settled in order, once, in every interleaving that hypothesis generates.

`World` is a nats-server, a Facilitator and one worker, without sockets, clock or event loop. The core decides
everything for the worker; `World` only passes things on, as path/ and facilitator/ do with I/O. Whatever is sent goes
through `World._send`, and whatever is settled through `World._settle`: there the property is checked at every step.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass, field

from delivery_kit import JOBS, FakeDelivery, body
from hypothesis import Phase as Phases
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.core.backoff import Backoff
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane
from relay.core.repeats import explains
from relay.core.session import Answered, Broken, Opened, Phase, Session, Suspicion
from relay.core.turns import Turns
from relay.core.update import DeadLetterHorizon, Update
from relay.core.verdict import Ack, Outcome, Repeated, RetryPolicy, judge, judge_repeated

LANES = {"a": 0, "b": 0, "c": 1}
WINDOW = 2
BACKOFF_S = 3.0
POLICY = RetryPolicy(3, Backoff(BACKOFF_S, BACKOFF_S, lambda: 1.0))
REPLY_TIMEOUT_S = 60.0
CONTROL = 0
"""Stands for the control on the socket, which is no update to be answered."""
PATIENCE_S = 1e9  # a missing update always comes back in time here; test_continuity tests that it does not

PUSH = '{"message_type":"V2JobRequest","uuid":"123","type":"job.new"}'
REPLIES = {
    "success": '{"status":"success","errors":[]}',
    "duplicate": '{"status":"error","errors":[{"type":"job.integrity_error","msg":"again"}]}',
    "not found": '{"status":"error","errors":[{"type":"job.not_found","msg":"who?"}]}',
    "permanent": '{"status":"error","errors":[{"type":"missing","msg":"what?"}]}',
}


@dataclass
class Consumer:
    """The server's state of one lane's consumer. Redeliveries come in any order, as from the real server."""

    unseen: deque[int] = field(default_factory=deque)
    pending: dict[int, int] = field(default_factory=dict)
    delivered: int = 0
    delivered_count: int = 0

    def next(self) -> int:
        self.delivered = self.unseen.popleft()
        self.pending[self.delivered] = 0
        return self.delivered

    def state(self) -> ConsumerState:
        return ConsumerState(len(self.pending), self.delivered, self.delivered_count)


class World:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.jobs: dict[int, str] = {}
        self.consumers = [Consumer(), Consumer()]
        self.socket: deque[int] = deque()  # reached the Facilitator on this connection and have no reply yet
        self.inserts_fail = False  # the Facilitator cannot store, and drops the connection at every update instead
        self.unfit: set[int] = set()
        self.stored: set[int] = set()
        self.dead: set[int] = set()
        self.settled: set[int] = set()
        self.sends: list[int] = []
        self.attempts: Counter[int] = Counter()  # the expected attempts
        self.suspect: int | None = None
        self.blamed = self.may_be_outage = False
        self.start_worker()

    # --- the worker

    def start_worker(self) -> None:
        """A new worker on the old streams; what the previous one had at hand comes back after `ack_wait`."""
        self.session = Session(
            window=WINDOW, reply_timeout_s=REPLY_TIMEOUT_S, authentication="let me in", size_of=lambda _: 1
        )
        # There are no times here: any update may have a dead letter if one exists.
        horizon = DeadLetterHorizon(*[math.inf if self.dead else -math.inf] * 2)
        self.lanes = [Lane(number, Continuity(PATIENCE_S), horizon) for number in (0, 1)]
        self.turns = Turns()
        for lane in self.lanes:
            self.turns.add(lane)
            self.start_pulling(lane.number)
        self.dead_lettering: Update | None = None
        self.settled_here: Counter[int] = Counter()
        self.maybe_stored: set[int] = set()  # as far as this worker can know
        self.socket.clear()
        self.attempts.clear()
        self.suspect, self.blamed, self.may_be_outage = None, False, False
        self.has_control = False

    def start_pulling(self, number: int) -> None:
        self.lanes[number].began(self.consumers[number].state(), self.now_s)

    def deliver(self, number: int, sequences: list[int], *, lost: bool = False) -> None:
        """The server delivers these updates, and they are read together, unless they are lost."""
        lane, consumer = self.lanes[number], self.consumers[number]
        deliveries = []
        for sequence in sequences:
            consumer.pending[sequence] += 1
            consumer.delivered_count += 1
            job, fit = self.jobs[sequence], sequence not in self.unfit
            deliveries.append(
                FakeDelivery(sequence, job, fit, consumer.delivered_count, deliveries=consumer.pending[sequence])
            )
        if lost:
            return
        at_hand = {update.sequence for update in lane.at_hand()}
        self.maybe_stored |= {each.sequence for each in deliveries if each.deliveries > 1} - at_hand
        for delivery, _ in lane.admit(deliveries, self.now_s).settled_before:
            consumer.pending.pop(delivery.sequence, None)
        self.open()

    def look(self, number: int) -> None:
        """Release a held lane if nothing is missing."""
        if self.lanes[number].held:
            self.lanes[number].resolve(self.consumers[number].state(), self.now_s)
        self.open()

    def open(self) -> None:
        """Send all that may be sent."""
        for update in self.session.fill(self.turns.take, self.now_s):
            self._send(update)
        while (update := self.turns.take_question(self.now_s)) is not None:
            update.questioned = update.has_equal_before = False  # no two updates of a job are equal here
            self._judge_repeated(update)
        if self.dead_lettering is None:
            self.dead_lettering = self.turns.take_dead_letter(self.now_s)

    def wake(self, seconds: float) -> None:
        self.now_s += seconds
        self.turns.wake(self.now_s)
        self.open()

    def dead_letter(self, *, written: bool, term_lost: bool = False) -> None:
        """Look up the next update to be dead-lettered and write its dead letter, or fail to."""
        update, self.dead_lettering = self.dead_lettering, None
        self._check_turn(update)
        if not written:
            update.lane.retry(update, self.now_s + BACKOFF_S)
        elif update.maybe_dead_lettered and update.sequence in self.dead:
            self._settle(update, Outcome.DEAD_LETTERED, lost=term_lost)
        elif not update.maybe_dead_lettered or update.lane.has_no_dead_letter(update) is not None:
            assert update.dead_letter is not None, "only what has a reason is dead-lettered"
            assert update.sequence not in self.dead, "dead-lettered twice"
            self.dead.add(update.sequence)
            self._settle(update, Outcome.DEAD_LETTERED, lost=term_lost)
        self.open()

    def receive(self, message: str, *, ack_lost: bool = False) -> None:
        match self.session.received(message, self.now_s):
            case Answered(update, reply):
                verdict = judge(reply, update.attempts + 1, POLICY)
                if isinstance(verdict, Repeated):
                    self._judge_repeated(update, ack_lost=ack_lost)
                elif isinstance(verdict, Ack):
                    self._settle(update, verdict.outcome, lost=ack_lost)
                else:
                    update.lane.fail(update, verdict, self.now_s)
            case Opened(bytes() as control):
                assert control in map(body, JOBS.values())
                self.socket.append(CONTROL)
            case (Suspicion() as suspicion) | Opened(suspicion=Suspicion() as suspicion):
                self._judge(suspicion)
            case Broken():
                self.lose(1002)
        self.open()

    def _judge_repeated(self, update: Update, *, ack_lost: bool = False) -> None:
        explained = explains(update, POLICY)
        if explained is None:
            update.lane.question(update)
            return
        verdict = judge_repeated(update.attempts + 1, POLICY, explained=explained)
        if isinstance(verdict, Ack):
            self._settle(update, verdict.outcome, lost=ack_lost)
            return
        assert update.sequence not in self.stored | self.maybe_stored, "not believed, although it can be stored"
        self.attempts[update.sequence] += 1
        update.lane.fail(update, verdict, self.now_s)

    def _judge(self, suspicion: Suspicion[Update]) -> None:
        suspect = suspicion.suspect
        if suspect.lane.may_go_again(suspicion, POLICY, self.now_s):
            self.session.probe(self.now_s)
            self._send(suspect, alone=True)
        else:
            assert suspect.dead_letter is None or not self.inserts_fail, "dead-lettered although the world is at fault"
            self.suspect = None
            self.session.clear_suspect()

    # --- the Facilitator and the way there

    def reply(self, kind: str, *, ack_lost: bool = False) -> None:
        """Answer the oldest update of the connection; one that is stored already is always a duplicate."""
        if self.inserts_fail and kind != "not found":
            self.drop(None, stored=False)
            return
        sequence = self.socket.popleft()
        if sequence == CONTROL:
            self._reply_to_control(kind)
            return
        kind = "duplicate" if sequence in self.stored or kind == "confused" else kind
        if kind == "success":
            self.stored.add(sequence)
        elif kind != "duplicate":
            self.attempts[sequence] += 1
        self.suspect = None
        self.receive(REPLIES[kind], ack_lost=ack_lost)

    def _reply_to_control(self, kind: str) -> None:
        self.has_control = kind != "not found"  # the job was deleted
        if self.has_control and self.blamed:
            self.attempts[self.suspect] += 1
        self.blamed = False
        self.receive(REPLIES["duplicate" if self.has_control else kind])

    def stall(self) -> None:
        """No answer comes within the timeout."""
        self.now_s += REPLY_TIMEOUT_S
        if self.session.overdue(self.now_s) is not None:
            self.receive(REPLIES["success"])  # too late
            self.lose(1002)

    def drop(self, code: int | None, *, stored: bool) -> None:
        """The connection is lost; the oldest update may have been stored before."""
        oldest = self.socket[0] if self.socket else CONTROL
        if oldest != CONTROL and stored:
            self.stored.add(oldest)
        if oldest != CONTROL and code in (None, 1003, 1007, 1009):
            self.may_be_outage = self.suspect is None
            self.suspect, self.blamed = oldest, True
        self.lose(code)

    def lose(self, code: int | None) -> None:
        self.maybe_stored |= set(self.socket) - {CONTROL}
        self.blamed = self.blamed and CONTROL not in self.socket
        self.socket.clear()
        lost = self.session.closed(code)
        assert self.suspect == (lost.suspect and lost.suspect.sequence)
        for update in lost.unanswered:
            update.lane.lose(update)
        if lost.suspect is not None:
            lost.suspect.maybe_stored = True

    def connect(self, how: str) -> None:
        """Connect, or fail in one of the two ways that an outage can cause."""
        if how != "let in":
            self.blamed = self.blamed and not self.may_be_outage
        if how == "no connection":
            self.session.failed_to_open()
            return
        self.session.opened(self.now_s)
        if how == "refused":
            self.session.received(REPLIES["permanent"], self.now_s)
        if how != "let in":
            self.session.closed(None)
            return
        if not self.has_control:
            self.blamed = False
        self.has_control = self.has_control and self.suspect is None  # else it is sent now
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
        if outcome is Outcome.DUPLICATE:
            assert update.sequence in self.stored | self.maybe_stored, "believed, although it cannot be stored"
        self.settled.add(update.sequence)
        update.lane.settle(update, outcome)
        if outcome is Outcome.ACKNOWLEDGED:
            self.has_control = True
            if self.session.control.keep(update.text, update.status):
                for lane in self.lanes:
                    lane.control_found()
        if not lost:
            del self.consumers[update.lane.number].pending[update.sequence]

    # --- what a test says of it

    def publish(self, *jobs: str) -> None:
        for job in jobs:
            sequence = len(self.jobs) + 1
            self.jobs[sequence] = job
            self.consumers[LANES[job]].unseen.append(sequence)

    def deliver_all(self) -> None:
        """Redeliver what is pending and not at hand, then deliver what is new."""
        for number, consumer in enumerate(self.consumers):
            at_hand = {update.sequence for update in self.lanes[number].at_hand()}
            again = sorted(set(consumer.pending) - at_hand, reverse=True)
            if sequences := again + [consumer.next() for _ in range(len(consumer.unseen))]:
                self.deliver(number, sequences)
            self.look(number)

    def calm_down(self) -> None:
        """Let time pass without faults until all is settled. Steps are limited, because a deadlock never ends."""
        self.inserts_fail = False
        for _ in range(5 + 2 * len(self.jobs)):
            if not any(consumer.pending or consumer.unseen for consumer in self.consumers):
                return
            if self.session.phase is Phase.CLOSED:
                self.connect("let in")
            self.deliver_all()
            while self.socket:
                self.reply("success")
            while self.dead_lettering is not None:
                self.dead_letter(written=True)
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
    world.deliver(0, [consumer.next()], lost=True)
    world.deliver(0, [consumer.next()])
    world.look(0)
    before = list(world.sends)
    world.calm_down()
    assert ([], [1, 2]) == (before, world.sends)


def with_control(*jobs):
    """A world in which an update of another job has been acknowledged: it is the control."""
    world = connected("b", *jobs)
    world.deliver(0, [world.consumers[0].next()])
    world.look(0)
    world.reply("success")
    return world


def drop_at_the_poison(world):
    """Drop the connection, connect again, and answer the control."""
    world.drop(None, stored=False)
    world.connect("let in")
    world.reply("duplicate")


def test_a_poison_update_goes_down_alone():
    """An update that drops every connection is sent alone after the first drop, and is dead-lettered at last."""
    world = with_control("a", "c")
    world.deliver_all()
    while world.attempts[2] < POLICY.max_attempts:
        drop_at_the_poison(world)
    assert ([1, 2, 3, 2, 2, 3], {2: POLICY.max_attempts}) == (world.sends, dict(world.attempts))
    world.calm_down()
    assert ({2}, {1, 3}) == (world.dead, world.stored)


def test_a_poison_update_at_first_waits_for_a_control():
    """With nothing acknowledged, no drop counts; another update goes first, and with its answer drops count."""
    world = connected("a", "c")
    world.deliver_all()
    for _ in range(POLICY.max_attempts):
        world.drop(None, stored=False)
        world.connect("let in")
    assert {} == +world.attempts
    while world.socket[0] != 2:
        world.drop(None, stored=False)
        world.connect("let in")
    world.reply("success")
    while world.attempts[1] < POLICY.max_attempts:
        drop_at_the_poison(world)
    world.calm_down()
    assert ({1}, {2}) == (world.dead, world.stored)


def test_failing_inserts_cost_no_attempts():
    """While the Facilitator drops the connection at every update, nothing is counted, however long that lasts."""
    world = with_control("a", "c")
    world.inserts_fail = True
    world.deliver_all()
    for _ in range(10 * POLICY.max_attempts):
        world.reply("success")
        world.connect("let in")
    assert {} == +world.attempts
    world.calm_down()
    assert (set(), {1, 2, 3}) == (world.dead, world.stored)


def test_an_outage_costs_no_attempts():
    """However often the reconnect fails after a drop, all unanswered updates are sent again, and no attempt counts."""
    world = with_control("a", "c")
    world.deliver_all()
    world.drop(None, stored=True)
    for how in ["no connection", "dropped at authentication"] * POLICY.max_attempts:
        world.connect(how)
    world.calm_down()
    assert ([1, 2, 3, 2, 3], {}, set()) == (world.sends, dict(world.attempts), world.dead)


def test_a_dead_letter_that_the_server_did_not_hear_of():
    """If the TERM of a dead-lettered update was lost, the next worker finds its dead letter and goes on."""
    world = with_control("a", "a")
    world.deliver(0, [world.consumers[0].next()])
    while world.attempts[2] < POLICY.max_attempts:
        drop_at_the_poison(world)
    world.dead_letter(written=True, term_lost=True)
    world.start_worker()
    world.calm_down()
    assert ({2}, {1, 3}, [{}, {}]) == (world.dead, world.stored, [each.pending for each in world.consumers])


FAILURES = st.lists(st.sampled_from(["no connection", "dropped at authentication", "refused"]), max_size=2)
CODES = [None, None, None, 1003, 1007, 1009, 1011, 1012, 1012]
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
        consumer = self.world.consumers[lane]
        together = data.draw(st.integers(1, len(consumer.unseen)))
        self.world.deliver(lane, [consumer.next() for _ in range(together)], lost=lost)

    @precondition(lambda self: any(consumer.pending for consumer in self.world.consumers))
    @rule(data=st.data(), lost=LOST)
    def redeliver(self, data, lost):
        lane = data.draw(st.sampled_from([n for n in (0, 1) if self.world.consumers[n].pending]))
        pending = sorted(self.world.consumers[lane].pending)
        sequences = data.draw(st.lists(st.sampled_from(pending), min_size=1, unique=True))
        self.world.deliver(lane, sequences, lost=lost)

    @rule()
    def look(self):
        for lane in (0, 1):
            self.world.look(lane)

    @rule(lane=st.integers(0, 1))
    def pull_again(self, lane):
        self.world.start_pulling(lane)

    @precondition(lambda self: self.world.socket)
    @rule(kind=st.sampled_from(["success", "success", "not found", "confused", "permanent"]), ack_lost=st.booleans())
    def reply(self, kind, ack_lost):
        self.world.reply(kind, ack_lost=ack_lost)

    @rule(fail=LOST)
    def change_whether_inserts_fail(self, fail):
        self.world.inserts_fail = fail

    @precondition(lambda self: self.world.session.phase is not Phase.CLOSED)
    @rule()
    def push(self):
        self.world.receive(PUSH)

    @precondition(lambda self: self.world.session.phase is not Phase.CLOSED)
    @rule(code=st.sampled_from(CODES), stored=st.booleans(), failures=FAILURES, back=st.booleans())
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

    @precondition(lambda self: self.world.dead_lettering is not None)
    @rule(written=st.booleans(), term_lost=st.booleans())
    def dead_letter(self, written, term_lost):
        self.world.dead_letter(written=written, term_lost=term_lost)

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
        assert len(self.world.socket) - self.world.socket.count(CONTROL) == self.world.session.unanswered

    def teardown(self):
        self.world.calm_down()
        assert set(self.world.jobs) == self.world.settled
        assert [{}, {}] == [consumer.pending for consumer in self.world.consumers]


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    phases=[phase for phase in Phases if phase is not Phases.explain],  # it takes a minute, and says little
)
TestInterleavings.__doc__ = "In any interleaving each job's updates go in stream order, and each settles exactly once."
