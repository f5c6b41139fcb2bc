"""Which inputs made which artefact of a run: down to dataset digest, model, code commit and library versions."""

from __future__ import annotations

from typing import Any

from foretune.flows.commands.terminal import Terminal
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.events import read_events
from foretune.storage.manifest import artefacts_in
from foretune.storage.results import artifact_of, finished_result
from foretune.storage.runs import Run

SAE = "SAE"
"""Name of the autoencoder among a run's outside inputs."""

DIGITS = 12  # of a digest, shown to people


def lineage_of(run: Run) -> dict[str, Any]:
    """Every artefact behind the run's result, each with its declared inputs and the artefacts it read; the names that
    the request gave to what lies outside the root, with their digests; and what computed each pass, and when."""
    result = finished_result(run)
    waiting = [(ref.task, ref.key) for ref in (artifact_of(run, name) for name in result.get("artifacts", {}))]
    nodes: dict[str, dict[str, Any]] = {}
    while waiting:
        task, key = waiting.pop()
        name = f"{task}/{key}"
        manifest = None if name in nodes else run.store.manifest(task, key)
        if manifest is None:
            continue
        parents = list(artefacts_in(manifest.inputs))
        waiting += parents
        nodes[name] = {
            "task": task,
            "key": key,
            "version": manifest.version,
            "inputs": manifest.inputs,
            "reads": sorted(f"{t}/{k}" for t, k in parents),
            "libraries": manifest.libraries,
            "git_commit": manifest.git_commit,
            "run_id": manifest.run_id,
            "created": manifest.created,
            "seconds": manifest.seconds,
        }
    named = {name: result.get("request", {}).get(name) for name in ("dataset", "model", "sae")}
    return {
        "run_id": run.run_id,
        "sources": named,
        "rows": result.get("summary", {}).get("rows"),
        "digests": outside_inputs(nodes),
        "libraries": _versions(node["libraries"] for node in nodes.values()),
        "commits": sorted({node["git_commit"] or "unknown" for node in nodes.values()}),
        "passes": _passes(run, nodes),
        "artifacts": dict(sorted(nodes.items())),
    }


def outside_inputs(nodes: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Digest of everything outside the root that the artefacts were made of: {what it is: digest}."""
    found: dict[str, str] = {}
    for node in nodes.values():
        inputs = node["inputs"]
        if node["task"] == "samples":
            found[f"{inputs['role']} rows"] = _digest(inputs.get("source"))
            found["tokenizer"] = _digest(inputs.get("tokenizer"))
        sae = inputs.get("sae")
        for name, part in (("model", inputs.get("model")), (SAE, sae[0] if isinstance(sae, list) else sae)):
            found[name] = found.get(name) or _digest(part and part.get("weights"))
        found["model file"] = found.get("model file") or _digest(inputs.get("gguf"))
        found["labels"] = found.get("labels") or _digest(inputs.get("labels"))
    order = ("train rows", "heldout rows", "preferences rows", "probes rows", "model", "model file", "tokenizer", SAE)
    named = {name: found[name] for name in (*order, "labels") if found.get(name)}
    return {name: digest for name, digest in named.items() if digest}


def _digest(source: Any) -> str:
    """Of a file outside the root; nothing for an artefact, whose own inputs say what it came from."""
    return source.get("digest", "") if isinstance(source, dict) else ""


def _versions(libraries: Any) -> dict[str, list[str]]:
    """Every version of every library that the artefacts were computed with; one each, unless some are older."""
    found: dict[str, set[str]] = {}
    for each in libraries:
        for name, version in each.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def _passes(run: Run, nodes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A task each, in the order in which they were computed: its artefacts, by which runs, in how many seconds."""
    try:
        own = {event.get("key") for event in read_events(run) if event["type"] == "pass_finished"}
    except (BadInput, StorageFault):
        own = set()
    passes: dict[str, dict[str, Any]] = {}
    for node in sorted(nodes.values(), key=lambda node: node["created"]):
        computed = node["run_id"] == run.run_id or node["key"] in own
        each = passes.setdefault(
            node["task"],
            {"task": node["task"], "artifacts": 0, "cached": 0, "seconds": 0.0, "computed": "", "runs": []},
        )
        each["artifacts"] += 1
        each["cached"] += not computed
        each["seconds"] = round(each["seconds"] + node["seconds"], 3)
        each["computed"] = node["created"]
        by = run.run_id if computed else node["run_id"]
        each["runs"] += [by] if by and by not in each["runs"] else []
    return list(passes.values())


def print_lineage(terminal: Terminal, traced: dict[str, Any], everything: bool = False) -> None:
    """What the run was made of, and a line per pass; with `everything` a line per artefact and what it read."""
    dataset, model, sae = (traced["sources"].get(name) or {} for name in ("dataset", "model", "sae"))
    digests = {name: digest[:DIGITS] for name, digest in traced["digests"].items()}
    rows = f"{traced['rows']} trained rows" if traced["rows"] is not None else "rows unknown"
    terminal.say(
        f"dataset    {dataset.get('path', '-')}  {rows}  digest {digests.get('train rows', '-')}",
        whole=True,
    )
    for role in ("heldout", "preferences", "probes"):
        if f"{role} rows" in digests:
            terminal.say(f"  {role:<12} digest {digests[f'{role} rows']}")
    weights = digests.get("model") or digests.get("model file", "-")
    revision = f"  revision {model['revision']}" if model.get("revision") else ""
    terminal.say(f"model      {model.get('name_or_path', '-')}{revision}  digest {weights}", whole=True)
    if sae:
        named = sae.get("path") or "/".join(filter(None, (sae.get("release"), sae.get("sae_id"))))
        terminal.say(f"SAE        {named}  digest {digests.get(SAE, '-')}", whole=True)
    versions = (f"{name} {' and '.join(each)}" for name, each in traced["libraries"].items())
    terminal.say(f"libraries  {', '.join(versions)}", whole=True)
    terminal.say(f"code       commit {', '.join(commit[:DIGITS] for commit in traced['commits'])}", whole=True)
    if everything:
        _print_artifacts(terminal, traced)
        return
    for each in traced["passes"]:
        cached = each["cached"] == each["artifacts"]
        state = "cached" if cached else f"{each['cached']} cached" if each["cached"] else "computed"
        parts = f"x {each['artifacts']}" if each["artifacts"] > 1 else ""
        terminal.say(
            f"  {each['task']:<20} {parts:<5} {each['computed'][:19]:<19}  {each['seconds']:>8.1f} s  {state:<9} "
            f"by {', '.join(each['runs']) or 'an earlier run'}",
            whole=True,
        )
    terminal.say(f"{len(traced['artifacts'])} artefacts; --all lists each with what it read, --json all inputs")


def _print_artifacts(terminal: Terminal, traced: dict[str, Any]) -> None:
    for name, node in traced["artifacts"].items():
        terminal.say(f"{name}  {node['created']}  {node['seconds']:.1f} s  commit {(node['git_commit'] or '-')[:12]}")
        for parent in node["reads"]:
            terminal.say(f"    reads {parent}")
