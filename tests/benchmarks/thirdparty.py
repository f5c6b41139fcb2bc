"""What other tools find in the demo's base, predicted and really trained model.

`make bench-thirdparty` trains the demo's request for real, exports the newest demo run's checkpoint and adapter, asks
every tool of tests/thirdparty/figures.py about the same held-out texts, and writes results/thirdparty.json: a row per
tool with its figure of each model, and how far the farthest is from that of transformers. A tool without an
environment is named and left out.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from foretune.flows.commands.export import export_adapter, export_checkpoint
from foretune.tasks.samples.chat import load_tokenizer
from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.simulation import PROJECT, Demo, trained_delta
from tests.thirdparty.environments import asked, python_of
from tests.thirdparty.figures import TOOLS

FOLDERS = ("base", "predicted", "trained")
SAE = PROJECT / "examples/demo/sae"
ROWS = 8


def folders(demo: Demo, into: Path) -> dict[str, str]:
    """Model folders by name, and base and adapter of the predicted one."""
    export_checkpoint(demo.run, str(into / "predicted"))
    export_adapter(demo.run, str(into / "adapter"))
    base = into / "base"
    demo.loaded.model.save_pretrained(base)
    state = {name: weight.detach().clone() for name, weight in demo.loaded.model.state_dict().items()}
    for name, change in trained_delta(demo).items():
        state[name] = state[name] + change.to(state[name].dtype)
    demo.loaded.model.save_pretrained(into / "trained", state_dict=state)
    for name in ("base", "trained"):
        for file in (into / "predicted").glob("*token*"):
            shutil.copy(file, into / name)
        shutil.copy(into / "predicted" / "config.json", into / name)
    return {name: str(into / name) for name in FOLDERS} | {"adapter": f"{base}:{into / 'adapter'}"}


def texts(folder: str) -> list[list[int]]:
    """Token ids of some of the demo's held-out questions and answers."""
    lines = (PROJECT / "examples/demo/heldout.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    said = [f"{row['instruction']} {row['output']}" for row in map(json.loads, lines)]
    return load_tokenizer(Path(folder)).encode_texts(said)


def row(tool: str, ids: list[list[int]], models: dict[str, str], expected: dict[str, float]) -> dict[str, Any]:
    """A tool's figures, rounded, and their largest distance from those of transformers."""
    alike = {"adapter": "predicted"} if tool == "dlm_sway" else dict(zip(FOLDERS, FOLDERS, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        found = asked(tool, Path(folder), ids, [models[name] for name in alike], SAE)
    figures = {same: found["figures"][models[name]] for name, same in alike.items()}
    furthest = max(abs(figure - expected.get(name, figure)) for name, figure in figures.items())
    told = {name: round(figure, 7) for name, figure in figures.items()}
    return {"tool": tool, **told, "furthest": furthest if tool != "sae_lens" else None, **found["versions"]}


def main() -> None:
    started, demo = environment(), Demo(sys.argv[1] if len(sys.argv) > 1 else str(PROJECT / ".foretune"))
    with tempfile.TemporaryDirectory() as name:
        models = folders(demo, Path(name))
        ids, rows, expected = texts(models["base"]), [], {}
        for tool in TOOLS:  # transformers first
            if not python_of(tool).exists():
                print(f"{tool}: no environment; `make thirdparty` makes it", flush=True)
                continue
            try:
                rows.append(row(tool, ids, models, expected))
            except RuntimeError as failed:
                if not rows:
                    raise  # what the others are held against
                rows.append({"tool": tool, "failed": str(failed).splitlines()[-1]})
            print(rows[-1], flush=True)
            expected = expected or {name: rows[0][name] for name in FOLDERS}
    print(write_results("thirdparty", with_earlier("thirdparty", rows, ("tool",)), started))


if __name__ == "__main__":
    main()
