# SPDX-License-Identifier: Apache-2.0
"""All interfaces of a VM as one gate, which the threads of a worker ask at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from remusdb.errors import GateError
from remusdb.net.factory import GateGroup, make_gate
from tests.host.netlab import Lab, frame, lab, number_of

EPOCHS = 200
LOST_ANSWER_S = 15.0  # a thread that was given another one's answer waits 5 s for its own


@pytest.fixture
def net() -> Iterator[Lab]:
    with lab() as made:
        yield made


def test_threads_do_not_take_each_others_answers(net: Lab) -> None:
    group = GateGroup([make_gate("tap", net.vm.name)])
    group.install()
    over, failed = threading.Event(), []

    def ask() -> None:
        try:
            while not over.is_set():
                group.metrics()
        except GateError as error:
            failed.append(error)

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    try:
        for asker in askers:
            asker.start()
        group.hold()
        for epoch in range(1, EPOCHS + 1):
            net.vm.send(frame(epoch))
            group.mark(epoch)
            group.release(epoch)
        got = [number_of(one) for one in net.wire.receive(EPOCHS, 5.0)]
        over.set()
        for asker in askers:
            asker.join(LOST_ANSWER_S)
        assert not failed and not any(asker.is_alive() for asker in askers)
        assert got == list(range(1, EPOCHS + 1))
    finally:
        over.set()
        group.remove()
