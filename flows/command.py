"""The entry point of the `foretune` command: ready for a signal before anything that takes long is imported."""

from __future__ import annotations


def main() -> None:
    from foretune.flows.interruption import stop_at_signals

    stop_at_signals()
    from foretune.flows.cli import main as command

    command()
