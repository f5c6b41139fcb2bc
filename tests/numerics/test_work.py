"""Tokens are counted where they go through a model: in this thread, in this block, and at every backward."""

from __future__ import annotations

import threading

from foretune.tasks.numerics.work import counted_work, work_here


def test_a_block_counts_its_own_work():
    with counted_work() as outer:
        work_here().forward(5)
        with counted_work() as inner:
            work_here().forward(3)
            work_here().backward(2)
        work_here().backward(1)
    assert (inner.forward_tokens, inner.backward_tokens, inner.forward_equivalents) == (3, 2, 7)
    assert (outer.forward_tokens, outer.backward_tokens) == (5, 1)


def test_another_thread_counts_apart():
    with counted_work() as ours:
        thread = threading.Thread(target=lambda: work_here().forward(7))
        thread.start()
        thread.join()
    assert ours.forward_tokens == 0
