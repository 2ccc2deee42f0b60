"""Hold a messaging driver to its contract: subclass `MessagingContract` and say where the broker is.

The tests know no broker. They use the driver in several connections and processes, kill the processes, and take
the broker away where the author shows how.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from attrs import evolve

from edgecore.models import Queue, Topology, Verdict
from edgecore.testing.broker import MessageBroker
from edgecore.testing.messaging_base import DEADLINE_S, MessagingBase, Post, flags, ids
from edgecore.testing.messaging_breaks import MessagingBreaks
from edgecore.testing.trees import MEBIBYTE

__all__ = ["MessageBroker", "MessagingContract"]

_MANY = 10_000


class MessagingContract(MessagingBreaks, MessagingBase):
    """Test every promise of the messaging role with one driver.

    Install the driver's package, then write in its ``tests/``::

        class RabbitMQ(MessageBroker):
            def __init__(self, server):
                self.server = server
                self.settings = {"url": f"amqp://127.0.0.1:{server.port}/test"}

            def stop(self):
                self.server.stop()

            def kill(self):
                self.server.kill()

            def start(self):
                self.server.start()

        class TestAmqp(MessagingContract):
            driver = "amqp"
            live = True
            prefetch = 100

            @pytest.fixture
            def broker(self, server):
                return RabbitMQ(server)

    `MessageBroker` says what each method must do. One that is neither written nor named in `cannot`, with
    the reason, makes its tests fail, so that nothing is forgotten. Exchanges and queues get
    names that no other test has, so that one server may serve many tests. Slow tests carry the mark ``slow``.
    """

    # ------------------------------------------------------------------------------- topology

    def test_declaring_again_changes_nothing(self, post: Post) -> None:
        """Everybody declares what they need when they start."""
        relay, other = post.connect(), post.connect()
        post.send(relay, "a")
        for each in (relay, other, relay):
            assert {post.queue, post.other} <= set(each.declare(topology=post.topology).queues)
        post.send(other, "b")
        assert ["a", "b"] == ids(post.take(relay, 2))
        assert [] == post.rest(relay)

    def test_a_message_goes_to_every_queue_that_is_bound_with_its_key(self, post: Post) -> None:
        """Keys are topics: ``#`` stands for any number of words."""
        relay = post.connect()
        keys = {"one": post.other, "both": "all.x", "deep": "all.x.y", "root": "all"}
        report = relay.send(messages=[post.message(name, key) for name, key in keys.items()])
        assert (4, {}) == (report.sent, report.unroutable)
        assert ["both", "deep", "root"] == ids(post.rest(relay))
        assert ["one", "both", "deep", "root"] == ids(post.rest(relay, post.other))

    def test_a_message_that_matches_twice_comes_once(self, post: Post) -> None:
        """Bindings decide whether, not how often."""
        relay = post.connect()
        twice = Queue(name=post.queue, exchange=post.exchange, keys=("#", "*", post.queue))
        relay.declare(topology=Topology(exchanges=(post.exchange,), queues=(twice,)))
        post.send(relay, "a")
        assert ["a"] == ids(post.rest(relay))

    def test_the_nameless_exchange_leads_to_the_queue_of_that_name(self, post: Post) -> None:
        """Replies go where a sender listens, without a binding."""
        relay = post.connect()
        relay.send(messages=[post.message("a", post.other, exchange="")])
        assert ["a"] == ids(post.take(relay, 1, post.other))

    def test_an_unroutable_message_is_reported_and_does_not_stop_the_others(self, post: Post) -> None:
        """A misspelt key must be seen by who sent it."""
        relay = post.connect()
        wrong = [post.message("key", "nowhere"), post.message("queue", "nowhere", exchange="")]
        report = relay.send(messages=[post.message("a"), *wrong, post.message("b")])
        assert {"key", "queue"} == set(report.unroutable)
        assert 2 == report.sent
        assert ["a", "b"] == ids(post.take(relay, 2))
        assert 1 == post.send(relay, "c").sent, "the connection must have survived"

    def test_a_message_to_an_exchange_that_does_not_exist_is_unroutable(self, post: Post) -> None:
        """It is no failure of the broker, for which waiting would help."""
        relay = post.connect()
        report = relay.send(messages=[post.message("a", exchange=f"no-{post.exchange}"), post.message("b")])
        assert (1, {"a"}) == (report.sent, set(report.unroutable))
        assert ["b"] == ids(post.take(relay, 1))

    # ------------------------------------------------------------------------------- content

    def test_messages_come_in_the_order_in_which_they_were_sent(self, post: Post) -> None:
        """Within a call, and from one call to the next."""
        relay = post.connect()
        names = [f"m{number:03}" for number in range(300)]
        for first in range(0, 300, 60):
            post.send(relay, *names[first : first + 60])
        assert names == ids(post.take(relay, 300, limit=7))

    @pytest.mark.slow
    def test_ten_thousand_messages_come_in_order(self, post: Post) -> None:
        """A site that was away for a week catches up."""
        relay = post.connect()
        names = [f"m{number:05}" for number in range(_MANY)]
        for first in range(0, _MANY, 1000):
            assert 1000 == post.send(relay, *names[first : first + 1000]).sent
        got: list[str] = []
        while len(got) < _MANY:
            deliveries = post.take(relay, min(500, _MANY - len(got)))
            assert len(deliveries) == post.settle(relay, deliveries)
            got += ids(deliveries)
        assert names == got

    def test_bytes_of_every_kind_arrive_as_they_were_sent(self, post: Post) -> None:
        """A body is no text; ids and keys for replies are."""
        relay = post.connect()
        body = bytes(range(256)) * 3
        first = post.message("Zürich 1", body=body, reply_to="status.me")
        relay.send(messages=[first, post.message("empty", body=b"")])
        one, other = post.take(relay, 2)
        assert (body, "Zürich 1", "status.me") == (one.body, one.message_id, one.reply_to)
        assert (b"", "empty", None) == (other.body, other.message_id, other.reply_to)
        assert (post.queue, False, "") == (one.queue, one.redelivered, one.reason)

    @pytest.mark.slow
    def test_a_message_of_16_megabytes_arrives(self, post: Post) -> None:
        """RabbitMQ's own limit is 16 MiB as it comes; ours for definitions is far below."""
        relay = post.connect()
        body = os.urandom(16 * MEBIBYTE - 1)
        relay.send(messages=[post.message("large", body=body)])
        (delivery,) = post.take(relay, 1)
        assert body == delivery.body
        assert 1 == post.settle(relay, [delivery])

    # ------------------------------------------------------------------------------- receive

    def test_receive_is_bounded_by_its_limit(self, post: Post) -> None:
        """Whoever asks for three can hold three."""
        relay = post.connect()
        post.send(relay, *"abcde")
        assert 0 < len(relay.receive(queue=post.queue, limit=3, timeout_s=DEADLINE_S)) <= 3

    def test_receive_comes_back_empty_after_its_time(self, post: Post) -> None:
        """Not before, and not much later."""
        relay = post.connect()
        for timeout_s in (0.0, 0.3):
            begun = time.monotonic()
            assert not relay.receive(queue=post.queue, limit=1, timeout_s=timeout_s)
            took_s = time.monotonic() - begun
            assert timeout_s <= took_s < timeout_s + 5, "a busy machine's pause is shorter"

    def test_receive_does_not_wait_for_more_than_there_is(self, post: Post) -> None:
        """One message is handed over at once, although there is room for more."""
        relay = post.connect()
        post.send(relay, "a")
        begun = time.monotonic()
        assert ["a"] == ids(relay.receive(queue=post.queue, limit=100, timeout_s=DEADLINE_S))
        assert time.monotonic() - begun < DEADLINE_S / 2

    def test_nobody_gets_what_somebody_holds(self, post: Post) -> None:
        """Not the same connection, and not another; and what one holds is bounded."""
        slow, other = post.connect(), post.connect()
        total = self.prefetch + 4
        post.send(slow, *(f"m{number:05}" for number in range(total)))
        held = post.take(slow, 2)
        free = post.take(other, total - 2 - self.prefetch)
        assert not set(ids(held)) & set(ids(free))
        assert len(free) == len(set(ids(free)))
        assert 2 == post.settle(slow, held)

    # -------------------------------------------------------------------------------- settle

    def test_what_was_accepted_is_gone_for_good(self, post: Post) -> None:
        """Also when the connection is closed."""
        relay = post.connect()
        post.send(relay, "a", "b")
        assert 2 == post.settle(relay, post.take(relay, 2))
        relay.close()
        assert [] == post.rest(post.connect())

    def test_what_was_put_back_comes_again_flagged(self, post: Post) -> None:
        """It is nobody's until then."""
        relay = post.connect()
        post.send(relay, "a", "b")
        one, other = post.take(relay, 2)
        assert 1 == post.settle(relay, [one], Verdict.PUT_BACK)
        assert [("a", True)] == flags(post.take(relay, 1))
        assert 1 == post.settle(relay, [other])

    @pytest.mark.parametrize("reason", ["line 1, column 2: a name is missing", "zwei\nZeilen ü", ""])
    def test_what_was_refused_lies_among_the_rejected_with_all_that_it_had(
        self, reason: str, post: Post
    ) -> None:
        """A person reads it there: the body, who asked, and why it was refused."""
        relay = post.connect()
        relay.send(messages=[post.message("bad", body=b"{,}", reply_to="status.me")])
        assert 1 == post.settle(relay, post.take(relay, 1), Verdict.REFUSE, reason)
        assert [] == post.rest(relay)
        (letter,) = post.take(relay, 1, f"{post.queue}.rejected")
        assert (b"{,}", "bad", "status.me") == (letter.body, letter.message_id, letter.reply_to)
        assert reason == letter.reason
        assert 1 == post.settle(relay, [letter])

    def test_a_delivery_is_settled_once(self, post: Post) -> None:
        """Settling again counts nothing and harms nobody, also when the message came again meanwhile."""
        relay = post.connect()
        post.send(relay, "a")
        first = post.take(relay, 1)
        assert 1 == post.settle(relay, first, Verdict.PUT_BACK)
        second = post.take(relay, 1)
        assert 0 == post.settle(relay, first)
        assert 1 == post.settle(relay, second)
        assert 0 == post.settle(relay, second, Verdict.REFUSE, "late")
        assert [] == post.rest(relay, f"{post.queue}.rejected")

    @pytest.mark.parametrize("verdict", list(Verdict))
    def test_deliveries_of_another_connection_are_not_settled(self, verdict: Verdict, post: Post) -> None:
        """A handle means nothing to others."""
        one, other = post.connect(), post.connect()
        post.send(one, *(f"m{number}" for number in range(self.prefetch + 2)))
        theirs = post.take(one, 1)
        post.take(other, 1)
        assert 0 == post.settle(other, theirs, verdict, "not mine")
        assert 1 == post.settle(one, theirs)

    def test_settling_what_never_was_counts_nothing(self, post: Post) -> None:
        """No token that is made up, and no empty list, is an error."""
        relay = post.connect()
        post.send(relay, "a")
        held = post.take(relay, 1)
        strange = [evolve(held[0], token=token) for token in ("x", "1", "0.0.0", held[0].token + "0")]
        assert [0, 0, 0, 0, 0] == [post.settle(relay, each) for each in ([], *([one] for one in strange))]
        assert 1 == post.settle(relay, held)

    # --------------------------------------------------------------------------- connections

    def test_what_a_closed_connection_held_comes_again_flagged(self, post: Post) -> None:
        """Closing settles nothing."""
        one, other = post.connect(), post.connect()
        post.send(one, "a", "b")
        post.take(one, 2)
        one.close()
        assert [("a", True), ("b", True)] == sorted(flags(post.take(other, 2)))

    def test_a_driver_that_is_opened_again_settles_nothing_of_its_former_connection(self, post: Post) -> None:
        """After every new connection, what is held of the one before is forgotten."""
        driver = post.make()
        former = post.open(driver)
        former.declare(topology=post.topology)
        post.send(former, "a")
        held = post.take(former, 1)
        former.close()
        now = post.open(driver)
        assert 0 == post.settle(now, held)
        again = post.take(now, 1)
        assert [("a", True)] == flags(again)
        assert 0 == post.settle(now, held, Verdict.REFUSE, "late")
        assert 1 == post.settle(now, again)

    def test_closing_twice_is_no_error(self, post: Post) -> None:
        """Who ends in a hurry may end twice."""
        relay = post.connect()
        relay.close()
        relay.close()

    def test_several_threads_send_while_one_receives(self, post: Post) -> None:
        """Every lane of a service reports; the messages of each thread stay in order."""
        relay = post.connect()
        names = [[f"{thread}.{number:03}" for number in range(25)] for thread in range(4)]
        got: list[str] = []
        with ThreadPoolExecutor(4) as pool:
            sending = [pool.submit(lambda own: [post.send(relay, n) for n in own], own) for own in names]
            while len(got) < 100:
                deliveries = post.take(relay, 1)
                assert 1 == post.settle(relay, deliveries)
                got += ids(deliveries)
            for each in sending:
                each.result(timeout=DEADLINE_S)
        for own in names:
            assert own == [name for name in got if name in set(own)]

    def test_the_profile_names_the_broker_and_no_sender_is_made_up(self, post: Post) -> None:
        """A sender counts only when the broker vouches for it."""
        relay = post.connect()
        post.send(relay, "a")
        (delivery,) = post.take(relay, 1)
        assert relay.profile.validates_sender or delivery.sender is None

    def test_what_a_driver_finds_about_itself_has_the_right_form(self, post: Post) -> None:
        """The checks around the driver look at it; there may be no finding."""
        assert isinstance(tuple(post.connect().diagnose()), tuple)
