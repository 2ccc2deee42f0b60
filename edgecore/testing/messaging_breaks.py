"""Hold a messaging driver to what it promises when processes are killed and the broker goes away."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from edgecore.errors import BrokerUnavailable
from edgecore.models import Verdict
from edgecore.testing.broker import MessageBroker
from edgecore.testing.messaging_base import DEADLINE_S, MessagingBase, Post, flags, ids

__all__ = ["MessagingBreaks"]


class MessagingBreaks(MessagingBase):
    """Use several processes, kill them, and take the broker away; a part of `MessagingContract`."""

    # ------------------------------------------------------------------------------ processes

    @pytest.mark.slow
    def test_between_several_producers_and_consumers_nothing_is_lost_or_doubled(self, post: Post) -> None:
        """Each message reaches one of the consumers, those of one producer in order."""
        relay = post.connect()
        consumers = [post.start("consume", post.queue, 7) for _ in range(2)]
        producers = [post.start("produce", post.exchange, post.queue, name, 15, 40) for name in "ab"]
        for producer in producers:
            assert 15 == len(producer.rest())
        post.send(relay, *["stop"] * len(consumers))
        outputs = [" ".join(consumer.rest()).split() for consumer in consumers]
        expected = [f"{name}.{call:05}.{n:03}" for name in "ab" for call in range(15) for n in range(40)]
        assert expected == sorted(outputs[0] + outputs[1])
        for output in outputs:
            for name in "ab":
                own = [word for word in output if word.startswith(name)]
                assert sorted(own) == own
        assert [] == post.rest(relay)

    @pytest.mark.slow
    def test_what_a_killed_consumer_held_comes_again_flagged(self, post: Post) -> None:
        """The messages of a dead process go to the next one; no time limit has to pass first."""
        relay = post.connect()
        post.send(relay, "a", "b")
        consumer = post.start("hold", post.queue, 2)
        assert "a b" == consumer.line()
        assert [] == post.rest(relay), "the consumer lives, and holds them"
        consumer.kill()
        assert [("a", True), ("b", True)] == sorted(flags(post.take(relay, 2)))

    @pytest.mark.slow
    def test_a_receive_that_waits_gets_what_a_killed_consumer_held(self, post: Post) -> None:
        """Nobody has to ask anew."""
        relay = post.connect()
        post.send(relay, "a")
        consumer = post.start("hold", post.queue, 1)
        assert "a" == consumer.line()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(relay.receive, queue=post.queue, limit=5, timeout_s=DEADLINE_S)
            consumer.kill()
            begun = time.monotonic()
            assert [("a", True)] == flags(waiting.result(timeout=2 * DEADLINE_S))
            assert time.monotonic() - begun < 5, "a connection that the kernel closed needs no time-out"

    @pytest.mark.slow
    def test_while_consumers_are_killed_nothing_is_lost_and_every_repetition_is_flagged(
        self, post: Post
    ) -> None:
        """Whoever sees a message without the flag is the first who does."""
        relay = post.connect()
        total = [f"a.{call:05}.{n:03}" for call in range(30) for n in range(20)]
        producer = post.start("produce", post.exchange, post.queue, "a", 30, 20)
        taken: list[tuple[str, bool]] = []
        for _ in range(3):
            victim = post.start("consume", post.queue, 20)
            lines = [victim.line(), victim.line(), victim.line()]
            lines += victim.kill()
            words = " ".join(lines).split()
            taken += [(word.rstrip("!"), word.endswith("!")) for word in words]
        assert 30 == len(producer.rest())
        while deliveries := post.rest(relay):
            taken += [(each.message_id or "", each.redelivered) for each in deliveries]
            post.settle(relay, deliveries)
        assert total == sorted({name for name, _ in taken})
        unflagged = Counter(name for name, flagged in taken if not flagged)
        assert 1 == max(unflagged.values())

    @pytest.mark.slow
    def test_what_was_sent_outlives_the_sender(self, post: Post) -> None:
        """Kill a producer again and again: every call that had returned arrived, whole."""
        relay = post.connect()
        confirmed: set[str] = set()
        for name in "abc":
            producer = post.start("produce", post.exchange, post.queue, name, 100_000, 25)
            lines = [producer.line() for _ in range(5)]
            lines += producer.kill()
            assert producer.killed
            confirmed |= {line for line in lines if len(line) == len("a.00000")}
        calls = Counter(name.rpartition(".")[0] for name in ids(post.rest(relay)))
        assert len(confirmed) >= 15
        assert {25} == {calls[name] for name in confirmed}

    @pytest.mark.slow
    def test_a_waiting_consumer_of_another_process_wakes_promptly(self, post: Post) -> None:
        """A message does not wait for the next look at a queue."""
        relay = post.connect()
        consumer = post.start("clock", post.queue, 21)
        assert "ready" == consumer.line()
        pacing, delays_s = threading.Event(), []
        for number in range(21):
            pacing.wait(0.05)  # so that it waits again, and is not just on its way
            post.send(relay, f"m{number}")
            sent = time.monotonic()  # durable: from here on it is the consumer's turn
            delays_s.append(float(consumer.line()) - sent)
        assert statistics.median(delays_s[1:]) < self.wakes_within_s, delays_s  # the first finds it starting

    @pytest.mark.slow
    def test_waiting_costs_less_than_a_hundredth_of_a_core(self, post: Post) -> None:
        """An idle service is not noticed on a login node."""
        post.connect()
        waited_s, worked_s = map(float, post.start("idle", post.queue, 3).line().split())
        assert waited_s >= 3
        assert worked_s < 0.01 * waited_s

    # -------------------------------------------------------------------- a broker that is away

    def test_while_the_broker_is_away_every_hook_says_so_and_works_again_afterwards(
        self, broker: MessageBroker, post: Post
    ) -> None:
        """Only BrokerUnavailable comes out, and the same driver object connects again by itself."""
        self.need("stop", "start")
        relay = post.connect()
        post.send(relay, "a", "b")
        held = post.take(relay, 1)
        other = post.connect()
        broker.stop()
        try:
            with suppress(BrokerUnavailable):
                assert 0 == post.settle(relay, held), "it comes again"
            for ask in (
                lambda: post.send(other, "c"),
                lambda: post.send(relay, "c"),
                lambda: relay.receive(queue=post.queue, limit=1, timeout_s=0.1),
                lambda: relay.declare(topology=post.topology),
                lambda: post.open(post.make()),
            ):
                with pytest.raises(BrokerUnavailable):
                    ask()
        finally:
            broker.start()
        self.again(lambda: post.send(relay, "d"))
        got = self.again(lambda: post.take(relay, 3))
        came = dict(flags(got))
        assert {"a", "b", "d"} == set(came)
        assert came["a"], "it had been handed out"
        assert self.prefetch or not came["b"], "nobody had it, nor was it sent ahead"
        assert not came["d"]
        assert 0 == post.settle(relay, held), "it was given out on a former connection"
        assert 3 == post.settle(relay, got)

    def test_what_was_declared_and_sent_is_there_after_a_restart(
        self, broker: MessageBroker, post: Post
    ) -> None:
        """Exchanges, queues and bindings are durable, and so is a message once `send` returned."""
        self.need("stop", "start")
        self._restart(broker, post, broker.stop)

    def test_what_was_declared_and_sent_is_there_after_a_power_failure(
        self, broker: MessageBroker, post: Post
    ) -> None:
        """The same without good order."""
        self.need("kill", "start")
        self._restart(broker, post, broker.kill, self.forgets)

    def _restart(self, broker: MessageBroker, post: Post, end: Callable[[], None], forgets: str = "") -> None:
        relay = post.connect()
        post.send(relay, "a")
        post.send(relay, "bad")
        post.settle(
            relay, [each for each in post.take(relay, 2) if each.message_id == "bad"], Verdict.REFUSE, "x"
        )
        relay.close()
        end()
        broker.start()
        later = self.again(lambda: post.open(post.make()))
        assert {} == post.send(later, "b").unroutable
        came = post.rest(later) if forgets else post.take(later, 2)
        assert ["a", "b"] == [name for name in ids(came) if not (forgets and name == "bad")]
        assert ["bad"] == ids(post.take(later, 1, f"{post.queue}.rejected"))
