"""The gate: a recall waits for one slice at most, and goes before the next one."""

from __future__ import annotations

import threading

from flexserve.trusted.weights.gate import Gate


def test_a_recall_finds_the_gate_open_when_nothing_computes():
    with Gate().shut(0) as shut:
        assert shut


def test_a_recall_gives_up_on_a_slice_that_outlasts_its_deadline():
    gate = Gate()
    with gate.slice(), gate.shut(0.01) as shut:
        assert not shut


def test_a_waiting_recall_goes_before_the_next_slice():
    gate, order = Gate(), []
    inside, over = threading.Event(), threading.Event()

    def compute() -> None:
        with gate.slice():
            inside.set()
            over.wait()
            order.append("slice")
        with gate.slice():
            order.append("next slice")

    def recall() -> None:
        with gate.shut(60) as shut:
            assert shut
            order.append("recall")

    computing, recalling = threading.Thread(target=compute), threading.Thread(target=recall)
    computing.start()
    inside.wait()
    recalling.start()
    while not gate._recalls:
        over.wait(0.001)
    over.set()
    computing.join()
    recalling.join()
    assert order == ["slice", "recall", "next slice"]


def test_a_slice_that_fails_leaves_the_gate_open():
    gate = Gate()
    try:
        with gate.slice():
            raise ValueError
    except ValueError:
        pass
    with gate.shut(0) as shut:
        assert shut
