"""Writes the locks: every package with its version and the digests of its files, as the package index publishes them.

    make lock                            # what pyproject.toml asks for now; versions stay where they can
    make lock UPGRADE="--upgrade-package prefect"

requirements.lock      what `make` installs: the package, its tests, linters, documents and Ray
locks/image.lock       what the image installs: the package, Ray, the workers of its pools; no tests, linters, documents
locks/torch-cuda.lock  torch from an ordinary index on Linux, with the CUDA libraries that it alone asks for
locks/torch-cpu.lock   torch for processors, where an index or a folder of wheels has it
locks/tools.lock       uv, pip-audit and cyclonedx-bom, in an environment of their own
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

LOCKS = Path(__file__).parent
PROJECT = LOCKS.parents[1]
OF_CUDA = re.compile(r"(nvidia-|cuda-|triton$)")
OF_TORCH = re.compile(r"(torch$|nvidia-|cuda-|triton$)")
BESIDE = ["setuptools", "asyncpg", "prefect-aws"]
"""Setuptools builds the package itself, asyncpg is for a server on Postgres, prefect-aws for its results on S3."""
POOLS = ["prefect-docker", "prefect-kubernetes"]
TOOLS = ["uv", "pip-audit", "cyclonedx-bom"]
PROCESSOR_BUILDS = {
    "cp311": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "cp312": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
}
"""sha256 of torch 2.13.0+cpu for Linux on x86-64, which the ordinary index does not have: to be replaced with torch."""


def compiled(inputs: list[str], known: str, options: list[str]) -> dict[str, str]:
    """Name -> its lines of a lock: what uv resolves for every platform, at the known versions where they will do."""
    with tempfile.TemporaryDirectory() as folder:
        asked, made = Path(folder, "asked.in"), Path(folder, "made.txt")
        asked.write_text("\n".join(inputs) + "\n")
        made.write_text(known)
        form = ["--generate-hashes", "--no-strip-extras", "--no-header", "--no-annotate"]
        run_uv([str(asked), *options, *form, "-o", str(made)])
        return entries(made.read_text())


def run_uv(words: list[str]) -> None:
    uv = Path(sys.executable).parent / "uv"
    # Not 3.11.0: a package of the documents wants 3.11.5 and newer.
    platforms = ["--universal", "--python-version", "3.11.5", "--quiet"]
    subprocess.run([str(uv), "pip", "compile", *words, *platforms], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)


def entries(text: str) -> dict[str, str]:
    """Name -> the line with its version and those with its digests."""
    found = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return {re.split(r"[=\[]", entry, maxsplit=1)[0]: entry for entry in found if "==" in entry.split("\n")[0]}


def torch_off_linux(pin: str) -> list[str]:
    """sha256 of the ordinary index's files of torch for macOS and Windows, where they ask for no CUDA."""
    with tempfile.TemporaryDirectory() as folder:
        asked, made = Path(folder, "asked.in"), Path(folder, "pylock.toml")
        asked.write_text(pin + "\n")
        run_uv([str(asked), "--no-deps", "-o", str(made)])
        wheels = tomllib.loads(made.read_text())["packages"][0]["wheels"]
    return [wheel["hashes"]["sha256"] for wheel in wheels if re.search(r"cp31[12]-(macosx|win)", wheel["url"])]


def write(path: Path, says: str, lines: dict[str, str]) -> None:
    """Pinned with and without its extras: pip before 23.3 takes the newest where one is missing."""
    pinned = [lines[name] for name in sorted(lines)]
    plain = [re.sub(r"\[.*?\]", "", entry, count=1) for entry in pinned if "[" in entry.split("==")[0]]
    path.write_text(f"# {says} Written by `make lock`.\n" + "".join([*pinned, *plain]))


def main() -> None:
    locks = [PROJECT / "requirements.lock", *sorted(LOCKS.glob("*.lock"))]
    known = "".join(path.read_text() for path in locks if path.exists() and path.stem not in ("tools", "torch-cpu"))
    everything = compiled(BESIDE, known, ["pyproject.toml", "--all-extras", *sys.argv[1:]])
    pins = "".join(everything.values())
    image = compiled([*BESIDE, *POOLS], known + pins, ["pyproject.toml", "--extra", "ray", *sys.argv[1:]])
    pin = everything["torch"].split()[0]
    digests = sorted([*PROCESSOR_BUILDS.values(), *torch_off_linux(pin)])
    cuda = {name: entry for name, entry in everything.items() if OF_TORCH.match(name)}
    rest = {name: entry for name, entry in everything.items() if not OF_CUDA.match(name)}
    rest["torch"] = " \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in digests)]) + "\n"
    write(PROJECT / "requirements.lock", "What make installs; torch on Linux: see deployments/README.md.", rest)
    outside = {name: entry for name, entry in image.items() if not OF_TORCH.match(name)}
    write(LOCKS / "image.lock", "What the image holds beside torch.", outside)
    write(LOCKS / "torch-cuda.lock", "torch from an ordinary index, on Linux with its CUDA libraries.", cuda)
    cpu = " \\\n    ".join([f"{pin}+cpu", *(f"--hash=sha256:{digest}" for digest in PROCESSOR_BUILDS.values())]) + "\n"
    write(LOCKS / "torch-cpu.lock", "torch for processors; from no ordinary index.", {"torch": cpu})
    tools = LOCKS / "tools.lock"
    known = tools.read_text() if tools.exists() else ""
    write(tools, "What make lock, sbom and audit run.", compiled(TOOLS, known, sys.argv[1:]))


if __name__ == "__main__":
    main()
