"""A Postgres of Debian's packages for one Prefect server: a cluster of its own, thrown away at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deployments.ports import free_port

VERSIONS = Path("/usr/lib/postgresql")
"""Where Debian's packages put a folder of binaries per version."""


def binaries() -> Path | None:
    """The folder of the newest installed version; None without one."""
    found = sorted(VERSIONS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def running_postgres() -> Iterator[str]:
    """The connection URL, password included, of an empty database that only this machine reaches."""
    folder, port, password = Path(tempfile.mkdtemp(prefix="foretune-postgres-")), free_port(), secrets.token_hex(16)
    user = "postgres" if os.geteuid() == 0 else None  # Postgres refuses to be run by root
    if user:
        shutil.chown(folder, user)

    def run(program: str, *words: str) -> None:
        done = subprocess.run(
            [str(binaries() / program), *words], user=user, cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    secret, data = folder / "password", str(folder / "data")
    secret.write_text(password)
    if user:
        shutil.chown(secret, user)
    run("initdb", "-D", data, "-U", "prefect", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+asyncpg://prefect:{password}@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)
