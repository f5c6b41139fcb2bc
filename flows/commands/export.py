"""The command `export`: the predicted checkpoint or its adapter as a folder of its own, or as one GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from foretune.flows.commands.counted import Counted
from foretune.flows.commands.options import Json, Quiet, Root, RunName, finish, named_run, terminal_for
from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run
from foretune.tasks.inputs.adapter_factors import ADAPTER

CARD = "README.md"


def export(
    run: RunName,
    folder: Annotated[str | None, typer.Argument(metavar="DIR", help="a folder that is made")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="LoRA's factors alone, as peft loads them")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="the whole checkpoint, as without any of these")] = False,
    gguf: Annotated[str | None, typer.Option("--gguf", metavar="FILE", help="one GGUF file, and no folder")] = None,
    gguf_type: Annotated[
        Literal["f16", "f32"], typer.Option("--gguf-type", help="of its matrices; vectors are float32")
    ] = "f16",
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy a run's predicted checkpoint, or its adapter, into a local folder that transformers and peft open, or write
    it as the GGUF file that llama.cpp opens."""
    if (gguf is None) == (folder is None) or adapter + merged + (gguf is not None) > 1:
        raise BadInput("export: give either a folder, with --adapter or --merged or neither, or --gguf FILE")
    found, terminal = named_run(run, root), terminal_for(quiet)
    with Counted(terminal) as counted:
        if gguf is not None:
            size = export_gguf(found, gguf, gguf_type, counted)
        else:
            assert folder is not None  # one of both, see above
            files = (export_adapter if adapter else export_checkpoint)(found, folder, counted)
    if gguf is not None:
        terminal.say(f"{found.run_id} in {gguf}: {size / 1e6:,.0f} MB, {gguf_type}; read back as written", whole=True)
        finish({"run_id": found.run_id, "file": gguf, "type": gguf_type, "bytes": size}, as_json)
    else:
        terminal.say(f"{len(files)} files of {found.run_id} in {folder}", whole=True)
        finish({"run_id": found.run_id, "folder": folder, "files": files}, as_json)


def export_checkpoint(run: Run, folder: str, counted: Counted | None = None) -> list[str]:
    """Copy the checkpoint's files into `folder`, which must be new or empty; names of the files."""
    card = {CARD: model_card(run, "transformers").encode()}
    return run.store.open(artifact_of(run, "checkpoint")).copy_to(folder, _told(counted), beside=card)


def export_adapter(run: Run, folder: str, counted: Counted | None = None) -> list[str]:
    """The same for the factors that the recursion moved, as peft stores them. BadInput where there are none."""
    from foretune.flows.request import stored_request
    from foretune.tasks.loading import adapter_config

    request, prediction = stored_request(run), run.store.open(artifact_of(run, "prediction"))
    if ADAPTER not in prediction.names():
        why = "it moves the weights themselves" if request.adapter.method == "full" else "it is of an earlier version"
        raise BadInput(f"run {run.run_id} has no adapter: {why}; export it without --adapter, or simulate it again")
    moved = prediction.arrow("layers.parquet", columns=["module"])["module"].to_pylist()
    modules = [name.removesuffix(".weight") for name in moved]
    config = adapter_config(request.adapter, modules, request.model.name_or_path)
    beside = {
        CARD: model_card(run, "peft").encode(),
        "adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }
    return prediction.copy_to(folder, _told(counted), only={ADAPTER}, beside=beside)


def export_gguf(run: Run, file: str, kind: Literal["f16", "f32"] = "f16", counted: Counted | None = None) -> int:
    """Write the checkpoint as one GGUF file; its size in bytes. Of a model that came from a GGUF file the fields are
    carried over. BadInput for a file that is there, and for a model that is not written so."""
    from foretune.flows.commands.ask import base_model
    from foretune.flows.request import stored_request
    from foretune.storage.outputs import checked_output
    from foretune.storage.places import local_path, localise
    from foretune.tasks.loading.gguf_writing import write_gguf

    target = Path(local_path(file, "export to"))
    checked_output(str(target), "", force=False)
    if not target.parent.is_dir():
        raise BadInput(f"{file}: no folder {target.parent}; make it first")
    checkpoint = artifact_of(run, "checkpoint")
    handle, named = base_model(run, checkpoint), stored_request(run).model.name_or_path
    origin = localise(named) if isinstance(handle.source, ArtifactRef) else None  # of a folder it is a fingerprint

    def told(done: int, total: int) -> None:
        if counted is not None:
            counted("writing", done, total, "tensors")

    notes = {"general.name": Path(named).stem, "foretune.run": run.run_id, "foretune.note": "predicted, not trained"}
    return write_gguf(target, run.store.open(checkpoint).folder(), origin, kind, notes, told)


def _told(counted: Counted | None) -> Any:
    def told(what: str, done: int, total: int) -> None:
        if counted is not None:
            counted(what, done / 1e6, total / 1e6, "MB")

    return told


def model_card(run: Run, library: str) -> str:
    """What the folder is, in the form of a card of the hub's: predicted, not trained; from what; how far trusted."""
    from foretune.storage.display import one_line
    from foretune.storage.redaction import redacted

    result = run.read_result()
    request, summary = result.get("request", {}), result.get("summary", {})
    base = one_line(request.get("model", {}).get("name_or_path", "the base model"))
    dataset = one_line(request.get("dataset", {}).get("path", "its dataset"))
    front = {"base_model": base, "library_name": library, "tags": ["foretune", "predicted"]}
    training = ", ".join(f"{name} {value}" for name, value in request.get("training", {}).items() if name != "version")
    before, after = summary.get("heldout_loss_base"), summary.get("heldout_loss_evaluated")
    loss = f"{before:.4f} before, {after:.4f} at these weights" if before and after else "not evaluated"
    return redacted(f"""---
{json.dumps(front)}
---
# Predicted, not trained

These weights were **predicted** by foretune, without a training loop: what fine-tuning `{base}` on `{dataset}` would
come to. They are an answer to a question, not a model to ship.

- Run: `{run.run_id}`
- Held-out loss, in nats per label token: {loss}
- Trusted: {one_line(summary.get("trust", "not said"))}
- The training that was asked about: {one_line(training, 2000)}
- Licence: that of the base model and of the dataset; foretune read neither.
""")
