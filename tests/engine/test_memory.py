"""A device out of memory is simulated by the error that torch raises; the GPU's slot by a real limit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from pydantic import BaseModel

from foretune.tasks.engine.memory import halved, within_memory

pytestmark = pytest.mark.slow
of_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="arenas, and a heap that keeps what is freed, are glibc's"
)


def run_alone(code: str, given: Mapping[str, str] = MappingProxyType({})) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own, whose allocator no variable sets but those `given`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC"))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=plain | {**given}, check=True
    )


class Sizes(BaseModel):
    batch_tokens: int = 64
    rows: int = 8


def failing_above(tokens: int):
    seen = []

    def compute(arguments: dict) -> list[int]:
        seen.append(arguments["settings"].batch_tokens)
        if seen[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seen

    return compute


@of_glibc
@pytest.mark.parametrize(
    ("called", "given", "arenas"), [(True, {}, 1), (False, {}, 4), (True, {"MALLOC_ARENA_MAX": "2"}, 2)]
)
def test_threads_that_start_share_one_arena(called, given, arenas):
    code = f"""
import ctypes, sys, threading
from foretune.tasks.engine.memory import keep_heap
{called} and keep_heap()
libc, met = ctypes.CDLL(None), threading.Barrier(3)
def filled():
    libc.malloc(1000)
    met.wait()
threads = [threading.Thread(target=filled) for _ in range(3)]
for each in threads: each.start()
for each in threads: each.join()
libc.malloc_stats()
"""
    assert len(re.findall(r"^Arena \d+:", run_alone(code, given).stderr, re.MULTILINE)) == arenas


@of_glibc
@pytest.mark.parametrize("called", [True, False])
def test_what_is_freed_is_there_for_what_is_needed_next(called):
    """Three blocks of 4 MB, written and freed a hundred times: what was given back is faulted in again."""
    code = f"""
import ctypes, resource
from foretune.tasks.engine.memory import keep_heap
{called} and keep_heap()
libc, size = ctypes.CDLL(None), 2**22
libc.malloc.restype = ctypes.c_void_p
def round():
    blocks = [ctypes.c_void_p(libc.malloc(size)) for _ in range(3)]
    for block in blocks: libc.memset(block, 1, size)
    for block in blocks: libc.free(block)
for _ in range(5): round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100): round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert (int(run_alone(code).stdout) < 1000) == called


def test_micro_batches_are_halved_until_they_fit_and_nothing_else_changes():
    arguments = {"settings": Sizes(), "number": 3}
    assert within_memory(failing_above(20), arguments, "pass") == [64, 32, 16]
    assert halved(arguments) == {"settings": Sizes(batch_tokens=32, rows=8), "number": 3}


def test_what_does_not_fit_by_the_token_raises_the_devices_own_error():
    with pytest.raises(torch.OutOfMemoryError):
        within_memory(failing_above(0), {"settings": Sizes()}, "pass")
    with pytest.raises(torch.OutOfMemoryError):
        within_memory(failing_above(0), {"settings": Sizes(batch_tokens=1)}, "pass")


FREED = """
import re
from pathlib import Path
from foretune.tasks.engine.memory import give_back

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

lasting, passing = [], []
for _ in range(300):  # a small one above each large one, so that the heap does not shrink by itself
    passing.append(bytearray(b"x" * 100_000))
    lasting.append(bytearray(b"x" * 2_000))
passing.clear()
held = resident()
give_back()
print(held - resident())
"""


@of_glibc
def test_what_a_pass_freed_goes_back_to_the_system():
    # A process of its own: the heap of this one has holes in which the small ones would lie.
    assert float(run_alone(FREED).stdout) > 15  # MiB, of 29


def test_other_errors_are_not_tried_again():
    calls = []

    def compute(arguments: dict) -> None:
        calls.append(1)
        raise RuntimeError("wrong shape")

    with pytest.raises(RuntimeError, match="wrong shape"):
        within_memory(compute, {"settings": Sizes()}, "pass")
    assert calls == [1]


def test_a_landscape_that_ran_out_of_memory_has_the_same_numbers(simulated, tmp_path, monkeypatch):
    from foretune.tasks.numerics.gradients import GradientSum

    batches = "landscape.batch_tokens=200"
    calm = simulated(f"runtime.root={tmp_path}/calm", batches)
    add, calls = GradientSum.add, []

    def short_of_memory(self, *arguments, **taps):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return add(self, *arguments, **taps)

    monkeypatch.setattr(GradientSum, "add", short_of_memory)
    tight = simulated(f"runtime.root={tmp_path}/tight", batches)
    for name, gradient in calm.tensors("landscape", "gradients").items():
        torch.testing.assert_close(tight.tensors("landscape", "gradients")[name], gradient, rtol=1e-2, atol=1e-4)
    assert tight.summary("landscape")["loss"] == pytest.approx(calm.summary("landscape")["loss"], rel=1e-5)
    assert tight.summary("landscape")["batches"] > calm.summary("landscape")["batches"]
