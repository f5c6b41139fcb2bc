"""The installed Chromium under Playwright, and a made-up run of a hundred thousand rows behind the real server."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from foretune.flows.commands.serve import HOST, application
from foretune.tasks.report.row_query import RowReader
from foretune.tasks.report.rows import RowTable

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "of-the-tests"


def big_table(count: int, seed: int = 0) -> RowTable:
    """Rows of some 400 characters, ranked at random, every 97th too long."""
    rng = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(3000)]
    answers = [" ".join(rng.choice(words, 55)) for _ in range(1000)]
    rows, rank = np.arange(count), rng.permutation(count)
    return RowTable(
        pa.table(
            {
                "row": rows,
                "sample_id": [f"{row:064x}" for row in rows],
                "prompt": [f"Question {row}?" for row in rows],
                "completion": [answers[row % 1000] for row in rows],
                "rejected": pa.nulls(count, pa.string()),
                "flags": [["too_long"] if row % 97 == 0 else [] for row in rows],
                "matches": pa.nulls(count),
                "duplicate_of": pa.nulls(count, pa.string()),
                "tokens": rows % 512,
                "trained": rows % 200,
                "cut": rows * 0,
                "loss": rng.normal(3, 1, count),
                "gain": rng.normal(20, 5, count),
                "mismatched": rows % 1009 == 0,
                "score": (count / 2 - rank) * 1e-8,
                "error": np.full(count, 1e-6),
                "rank": rank + 1,
                "verdict": np.where(rank < 1000, "harms", np.where(rank > count - 1000, "helps", "neutral")),
                "moved": [[0, 1]] * count,
                "moved_by": [[1e-4, -1e-4]] * count,
                "cluster": pa.nulls(count, pa.int64()),
            }
        ),
        pa.table({"row": [0, 1], "prompt": ["Held out?", "And this?"], "completion": ["Yes.", "Too."]}),
        "nats per token",
    )


@contextmanager
def serving(page: str, reader: RowReader) -> Iterator[str]:
    """Address of the page behind the server of `foretune serve`."""
    import uvicorn

    listening = socket.socket()
    listening.bind((HOST, 0))
    place = f"{HOST}:{listening.getsockname()[1]}"
    config = uvicorn.Config(application(page, reader, TOKEN, place), log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield f"http://{place}/?view={TOKEN}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, closed at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Any, address: str, faults: list[str], **context: Any) -> Any:
    """The page, loaded, with what its console and its scripts complain of in `faults`."""
    tab = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context).new_page()
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(address)
    tab.wait_for_selector("#row-table[data-shown]")
    return tab
