"""The contracts of transfer and messaging find what careless drivers do wrong, test by test.

Each run is a pytest of its own, in which the contract is given a driver that works at first sight.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.slow

CARELESS_TRANSFER: Final = """
import contextlib
from pathlib import Path
from urllib.parse import unquote

import pytest
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.hookspecs import Transfer, hookimpl
from edgecore.models import Closed, ProbeReport, TransferProfile, TransferReport, TransferUpdate
from edgecore.testing import Peer, TransferContract, transfer_base


class Careless(Transfer):
    '''Copy as one does it in an afternoon.'''

    @hookimpl
    def open(self, site):
        return TransferProfile()

    def carry(self, source, target, progress):
        progress(TransferUpdate(files=0, size_bytes=0))
        paths = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
        if not source.exists():
            raise TransferInterrupted(f"{source} is not there")
        size = 0
        for path in paths:
            to = target / (path.relative_to(source) if source.is_dir() else path.name.strip())
            to.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as reader, to.open("wb") as writer:
                while block := reader.read(1 << 20):
                    writer.write(block)
                    size += len(block)
                    progress(TransferUpdate(files=0, size_bytes=size))
        return TransferReport(files=len(paths), size_bytes=size, verified="size")

    @hookimpl
    def fetch(self, url, directory, progress):
        return self.carry(Path(unquote(url.removeprefix("file://"))), directory, progress)

    @hookimpl
    def deliver(self, directory, url, progress):
        return self.carry(directory, Path(unquote(url.removeprefix("file://"))), progress)

    @hookimpl
    def probe(self, url):
        return ProbeReport(ok=True, message="sure")

    @hookimpl
    def close(self):
        return Closed()


transfer_base.make_driver = lambda role, name, settings: Careless()


class TestCareless(TransferContract):
    driver = "careless"
    cannot = dict.fromkeys(
        ["take_permission", "break_connection", "stall", "list_as", "send_more"], "not shown here"
    )

    @pytest.fixture
    def peer(self, tmp_path):
        peer = Peer()
        peer.place = tmp_path / "far"
        peer.place.mkdir()
        peer.url = f"file://{peer.place}"
        peer.slow = contextlib.nullcontext
        return peer
"""

CARELESS_MESSAGING: Final = """
import time

import pytest
from edgecore.hookspecs import Messaging, hookimpl
from edgecore.models import Closed, Declared, Delivery, MessagingProfile, SendReport, Settled, Verdict
from edgecore.testing import MessageBroker, MessagingContract, messaging_base

QUEUES = {}


class Careless(Messaging):
    '''Keep messages in lists, and hand out whatever is there.'''

    @hookimpl
    def open(self, site):
        self.held = {}
        return MessagingProfile(broker="lists")

    @hookimpl
    def declare(self, topology):
        QUEUES.update({queue.name: [] for queue in topology.queues})
        return Declared(queues=tuple(queue.name for queue in topology.queues))

    @hookimpl
    def send(self, messages):
        for message in messages:
            QUEUES.setdefault(message.key, []).append(message)
        return SendReport(sent=len(messages))

    @hookimpl
    def receive(self, queue, limit, timeout_s):
        found = QUEUES.get(queue, [])
        if len(found) < limit:
            time.sleep(min(timeout_s, 0.05))
        return [
            Delivery(token=each.message_id, queue=queue, body=each.body, message_id=each.message_id)
            for each in found[: limit + 1]
        ]

    @hookimpl
    def settle(self, deliveries, verdict, reason):
        for delivery in deliveries:
            QUEUES[delivery.queue] = [m for m in QUEUES[delivery.queue] if m.message_id != delivery.token]
        return Settled(count=len(deliveries))

    @hookimpl
    def close(self):
        return Closed()


messaging_base.make_driver = lambda role, name, settings: Careless()
messaging_base.DEADLINE_S = 0.3


class TestCareless(MessagingContract):
    driver = "careless"
    cannot = {"kill": "not shown here", "start": "not shown here"}

    @pytest.fixture
    def broker(self):
        broker = MessageBroker()
        broker.settings = {}
        return broker
"""

UNFINISHED: Final = """
import pytest
from edgecore.testing import MessageBroker, MessagingContract


class TestUnfinished(MessagingContract):
    driver = "sqlite"

    @pytest.fixture
    def broker(self, tmp_path):
        broker = MessageBroker()
        broker.settings = {"url": f"sqlite://{tmp_path}/queue.sqlite"}
        return broker
"""


def failed(text: str, directory: Path, *options: str) -> set[str]:
    """Run the tests of a module; return the names of those that failed, with their parameters."""
    module = directory / "test_driver.py"
    module.write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rf",
        "--tb=no",
        "--assert=plain",  # nobody reads what was compared
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    done = subprocess.run(
        [*command, "-m", "not slow", *options, str(module)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return set(re.findall(r"^FAILED \S+?::\w+::(test_\S+)", done.stdout, re.MULTILINE))


def test_a_careless_transfer_driver_fails_where_it_is_careless(tmp_path: Path) -> None:
    found = failed(CARELESS_TRANSFER, tmp_path)
    assert {
        "test_the_content_of_a_tree_arrives_with_what_is_empty_and_with_all_that_the_profile_keeps[fetch]",
        "test_the_content_of_a_tree_arrives_with_what_is_empty_and_with_all_that_the_profile_keeps[deliver]",
        "test_an_empty_tree_arrives[fetch]",
        "test_only_what_is_selected_is_delivered_and_the_rest_is_no_reason_to_refuse",
        "test_a_repeated_call_skips_what_is_right[deliver]",
        "test_a_repeated_call_repairs_what_is_wrong_and_skips_the_rest[missing-fetch]",
        "test_a_driver_that_is_opened_anew_knows_what_was_carried_before",
        "test_a_source_that_does_not_exist_is_refused_by_name",
        "test_a_directory_where_a_file_must_go_is_refused[fetch]",
        "test_a_file_where_a_directory_must_go_is_refused[deliver]",
        "test_what_is_no_file_is_refused",
        "test_links_inside_a_tree_are_kept_or_refused_as_declared[fetch]",
        "test_a_link_that_leaves_its_tree_is_refused_before_anything_moves[absolute-deliver]",
        "test_a_link_at_the_target_is_never_followed",
        "test_a_probe_says_whether_something_can_be_read_and_moves_nothing",
    } <= found
    assert "test_a_file_is_fetched_under_its_own_name" not in found


def test_a_transfer_driver_that_writes_under_final_names_is_found_when_it_is_stopped(tmp_path: Path) -> None:
    name = "test_a_transfer_that_is_stopped_at_any_point_is_resumed_and_ends_right"
    found = failed(CARELESS_TRANSFER, tmp_path, "-m", "slow", "-k", name)
    assert {f"{name}[fetch]", f"{name}[deliver]"} == found


def test_a_careless_messaging_driver_fails_where_it_is_careless(tmp_path: Path) -> None:
    found = failed(CARELESS_MESSAGING, tmp_path)
    assert {
        "test_declaring_again_changes_nothing",
        "test_a_message_goes_to_every_queue_that_is_bound_with_its_key",
        "test_an_unroutable_message_is_reported_and_does_not_stop_the_others",
        "test_a_message_to_an_exchange_that_does_not_exist_is_unroutable",
        "test_bytes_of_every_kind_arrive_as_they_were_sent",
        "test_receive_is_bounded_by_its_limit",
        "test_nobody_gets_what_somebody_holds",
        "test_what_was_put_back_comes_again_flagged",
        "test_a_delivery_is_settled_once",
        "test_what_a_closed_connection_held_comes_again_flagged",
        "test_a_driver_that_is_opened_again_settles_nothing_of_its_former_connection",
    } <= found
    assert "test_closing_twice_is_no_error" not in found


def test_an_ability_that_is_neither_written_nor_declared_is_a_failure(tmp_path: Path) -> None:
    assert {
        "test_what_was_declared_and_sent_is_there_after_a_restart",
        "test_what_was_declared_and_sent_is_there_after_a_power_failure",
        "test_while_the_broker_is_away_every_hook_says_so_and_works_again_afterwards",
    } <= failed(UNFINISHED, tmp_path, "-k", "restart or power or away")
