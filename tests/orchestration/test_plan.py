"""`foretune plan`: the keys of the run, the reason for every task, what it costs; and no model in memory."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from foretune.flows.commands.history import History
from foretune.flows.commands.plan import make_plan, print_plan
from foretune.flows.commands.terminal import Terminal
from foretune.flows.request import load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.cache import cache_dir
from foretune.storage.digests import change_identity, digest_of
from foretune.storage.errors import BadInput
from foretune.storage.rates import KEPT, remember_rate, remembered_rates
from foretune.storage.runs import Run
from foretune.tasks.engine.changes import changes, said
from foretune.tasks.engine.keys import ContentKey
from foretune.tasks.loading import AdapterTargets
from foretune.tasks.loading.footprint import footprint
from foretune.tasks.loading.headers import stored_tensors
from tests.dag import run_dag
from tests.loading.test_conversion import written
from tests.orchestration.test_invalidation import SETTINGS

OTHER_RATE = sum(SETTINGS["training.learning_rate=2e-3"].values())
"""Tasks that run again under another rate."""


def plan_of(request: Path, *overrides: str) -> dict:
    return make_plan(load_request(str(request), list(overrides)))


def rows_of(request: Path) -> int:
    """Training and held-out rows."""
    return sum(len((request.parent / f"{role}.jsonl").read_text().splitlines()) for role in ("train", "heldout"))


def reasons(planned: dict) -> dict[str, str]:
    return {task["task"]: task["why"] for task in planned["tasks"] if task["state"] == "run"}


@pytest.mark.slow
def test_the_plan_of_an_empty_root_has_the_keys_of_the_run(write_tiny_request, tmp_path, new_machine):
    request = write_tiny_request(tmp_path)
    planned = plan_of(request)
    assert planned["seconds"] is planned["bytes"] is None
    assert planned["unknown"] == sorted({task["task"] for task in planned["tasks"]})
    assert set(reasons(planned).values()) == {"never run here"}
    assert not (tmp_path / "root").exists()
    step, _ = run_dag(request)
    assert [(task["task"], task["key"]) for task in planned["tasks"]] == [(r.task, r.key) for _, r in step.steps]
    assert {task["state"] for task in plan_of(request)["tasks"]} == {"cached"}


@pytest.fixture
def new_machine(tmp_path, monkeypatch) -> None:
    """One that has never run anything."""
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "new-machine"))


@pytest.mark.slow
def test_a_new_root_is_estimated_from_what_ran_on_this_machine(write_tiny_request, tmp_path, new_machine):
    request = write_tiny_request(tmp_path)
    elsewhere = f"runtime.root={tmp_path / 'elsewhere'}"
    run_dag(request)
    planned = plan_of(request, elsewhere)
    assert planned["unknown"] == [] and planned["basis"] == ["this machine"]
    measured = ArtifactStore(tmp_path / "root")
    took = sum(measured.manifest(each.task, each.key).seconds for each in measured.iterate())
    assert took / 3 < planned["seconds"] < 3 * took
    sdpa = plan_of(request, elsewhere, "model.attn_implementation=sdpa")  # the model as passes would open it
    assert "landscape_shard" in sdpa["unknown"] and "quality_shard" not in sdpa["unknown"]
    assert sdpa["seconds"] is None


def test_another_model_under_the_same_root_is_a_last_resort_and_named(first_run, new_machine):
    planned = plan_of(first_run, "model.attn_implementation=sdpa")
    basis = {task["task"]: task["basis"] for task in planned["tasks"] if task["state"] == "run"}
    assert basis["landscape_shard"] == "another model" and basis["gradient"] == "this root"
    assert planned["basis"] == ["another model", "this root"]


def test_rates_are_bounded_and_a_torn_line_is_left_out(new_machine, first_run):
    store = ArtifactStore(first_run.parent / "root")
    manifest = next(store.manifest(s.task, s.key) for s in store.iterate() if s.task == "landscape_shard")
    for seconds in range(1000):
        remember_rate(manifest.model_copy(update={"seconds": float(seconds)}))
    (file,) = (cache_dir() / "rates").iterdir()
    assert file.stat().st_size < 500 * KEPT
    with open(file, "a") as stream:
        stream.write('{"seconds": 1')
    rates = remembered_rates("landscape_shard", manifest.inputs["model"])
    assert [took.seconds for took in rates] == [float(n) for n in range(1000 - len(rates), 1000)]
    assert len(rates) == KEPT - 1 and rates[-1].work == manifest.work
    assert remembered_rates("landscape_shard", None) == []


@pytest.mark.parametrize(
    ("override", "task", "why"),
    [
        ("training.learning_rate=2e-3", "path", "training.learning_rate 0.001 -> 0.002"),
        ("training.learning_rate=2e-3", "prediction", "training.learning_rate 0.001 -> 0.002; reads new path"),
        ("training.learning_rate=2e-3", "influence", "schedule.learning_rate 0.001 -> 0.002"),
        ("training.learning_rate=2e-3", "checkpoint", "reads new prediction"),
        ("adapter.lora_alpha=8", "curvature", "adapter.lora_alpha 4 -> 8; reads new samples, sharpness"),
        ("adapter.lora_alpha=8", "influence", "reads new replays, shards (4 of 4), solve, targets"),
        ("influence.solver.damping=0.02", "influence_solve", "solver.damping 0.01 -> 0.02"),
        ("thresholds.spike_factor=2", "landscape", "thresholds.spike_factor 5 -> 2"),
        ("report.top_rows=5", "report", "settings.top_rows 12 -> 5"),
    ],
)
def test_a_reason_is_the_path_of_what_changed(first_run, override, task, why):
    assert reasons(plan_of(first_run, override))[task] == why


@pytest.mark.slow
def test_dropped_rows_are_planned_as_they_run(warm_request):
    train = warm_request.parent / "train.jsonl"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[1:]))
    planned = plan_of(warm_request)
    assert reasons(planned)["landscape_shard"] == "other rows"
    assert reasons(planned)["gradient"].startswith("reads new shards (1 of ")
    assert "the dataset file changed" in reasons(planned)["samples"]
    assert planned["causes"] and planned["compared_with"] is not None
    step, _ = run_dag(warm_request)
    assert [(t["key"], t["state"] == "cached") for t in planned["tasks"]] == [(r.key, r.cached) for _, r in step.steps]


def test_dropped_rows_are_counted_against_the_nearest_run(warm_request):
    store = ArtifactStore(warm_request.parent / "root")
    cached = {task["task"]: task["key"] for task in plan_of(warm_request)["tasks"][:1]}
    samples = store.find("samples", cached["samples"])
    run = Run(store.root.uri, "20261129-101010-tiny-1a2b")
    run.write_result({"artifacts": {"samples": {"uri": samples.uri, "sha256": samples.sha256}}})
    assert plan_of(warm_request)["causes"] == []
    train = warm_request.parent / "train.jsonl"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[1:]))
    planned = plan_of(warm_request)
    assert "dataset rows +0 -1" in {cause["what"] for cause in planned["causes"]}
    out = io.StringIO()
    print_plan(Terminal(file=out, width=200), planned)
    assert "dataset rows +0 -1" in out.getvalue() and "what changed" in out.getvalue()


def as_run(request: Path, run_id: str, made: dict, *overrides: str) -> None:
    """A finished run of these artefacts."""
    wanted = load_request(str(request), list(overrides))
    stored = {name: {"uri": ref.uri, "sha256": ref.sha256} for name, ref in made.items()}
    result = {"request": wanted.model_dump(mode="json"), "artifacts": stored}
    Run(wanted.runtime.root, run_id).write_result(result)


def test_a_plan_is_explained_against_the_nearest_run_and_not_the_newest(warm_request):
    far = ("training.learning_rate=2e-3", "report.top_rows=5")
    as_run(warm_request, "20261129-101010-tiny-aaaa", run_dag(warm_request).made)
    as_run(warm_request, "20261129-202020-tiny-bbbb", run_dag(warm_request, *far).made, *far)
    planned = plan_of(warm_request, "report.top_rows=6")
    assert planned["compared_with"] == "20261129-101010-tiny-aaaa"
    assert reasons(planned) == {"report": "settings.top_rows 12 -> 6"}
    planned = plan_of(warm_request, far[0], "report.top_rows=6")
    assert planned["compared_with"] == "20261129-202020-tiny-bbbb"
    assert reasons(planned) == {"report": "settings.top_rows 5 -> 6"}
    assert planned["compared_because"].endswith("named artefacts are shared, 1 setting differs")
    out = io.StringIO()
    print_plan(Terminal(file=out, width=200), planned)
    assert "since run 20261129-202020-tiny-bbbb (nearest of the runs here: " in out.getvalue()


def test_of_runs_that_share_as_much_the_one_with_the_fewest_other_settings_is_nearest(warm_request):
    made = run_dag(warm_request).made
    as_run(warm_request, "20261129-101010-tiny-aaaa", made)
    as_run(warm_request, "20261129-202020-tiny-bbbb", made, "training.learning_rate=3e-3", "training.epochs=2")
    as_run(warm_request, "20261129-303030-tiny-cccc", {}, "report.top_rows=6")
    assert plan_of(warm_request, "report.top_rows=6")["compared_with"] == "20261129-101010-tiny-aaaa"


def test_a_new_version_and_a_new_library_are_named(first_run):
    store = ArtifactStore(first_run.parent / "root")
    stored = next(each for each in store.iterate() if each.task == "landscape_shard")
    manifest = store.manifest(stored.task, stored.key)
    newer = ContentKey(task="landscape_shard", version=manifest.version + 1, libraries=tuple(manifest.libraries))
    assert History(store).reason(newer, manifest.inputs).line == "its code is new: version 2 -> 3"
    other = ContentKey(task="landscape_shard", version=manifest.version, libraries=("torch",))
    assert "transformers" in History(store).reason(other, manifest.inputs).line


def test_seconds_grow_with_the_tokens(first_run):
    history = History(ArtifactStore(first_run.parent / "root"))
    model = history.manifests("landscape_shard")[0].inputs["model"]
    one, four = (history.cost("landscape_shard", {"rows": 5 * n, "tokens": 400 * n}, model) for n in (1, 4))
    assert one.seconds > 0
    assert four.seconds == pytest.approx(4 * one.seconds)
    stored = {manifest.bytes for manifest in history.manifests("landscape_shard")}
    assert {one.bytes, four.bytes} <= stored  # those of the nearest in size: a field's node does not grow with rows
    assert history.cost("unheard_of", {}).seconds is None


def test_a_plan_of_stored_kinds_of_tasks_has_a_total(first_run):
    planned = plan_of(first_run, "training.learning_rate=2e-3")
    assert planned["seconds"] > 0
    assert planned["bytes"] > 0
    assert planned["field_bytes"] == 0
    assert plan_of(first_run)["seconds"] == 0


def test_sizes_come_from_the_headers_of_the_weights(tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stored = stored_tensors(tiny_llama / "model.safetensors")
    assert {name: form.shape for name, form in stored.items()} == own
    sizes = footprint(tiny_llama, AdapterTargets(target_modules=["q_proj", "v_proj"]))
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.adapted == 2 * (32 * 32 + 16 * 32)
    everything = footprint(tiny_llama, AdapterTargets(target_modules="all-linear"))
    assert everything.adapted == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)


def test_the_field_is_nodes_and_rows_times_numbers_times_dtype(first_run, tmp_path):
    empty = f"runtime.root={tmp_path / 'empty'}"
    planned = plan_of(first_run, empty, "landscape.gradient_dtype=float32", "landscape.row_gradients=0")
    nodes = sum(task["task"] == "landscape_shard" for task in planned["tasks"])
    assert planned["field_bytes"] == nodes * 2 * (32 * 32 + 16 * 32) * 4
    kept = plan_of(first_run, empty, "landscape.gradient_dtype=float32")["field_bytes"]
    assert planned["field"]["rows"] == 0 and planned["field_bytes_whole"] == planned["field_bytes"]
    rows = rows_of(first_run)
    rank = load_request(str(first_run)).adapter.r
    assert kept - planned["field_bytes"] == rows * 2 * (32 + 16) * rank * 4


def write_holes(path, shapes):
    """A safetensors file of bfloat16 tensors that takes no place on the disk and is not hashed: as if it had been."""
    ends = list(itertools.accumulate(2 * math.prod(shape) for shape in shapes.values()))
    places = zip(shapes.items(), [0, *ends], ends, strict=False)
    entries = {n: {"dtype": "BF16", "shape": s, "data_offsets": [start, end]} for (n, s), start, end in places}
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + ends[-1])
    known = cache_dir() / "digests" / digest_of([str(path), *change_identity(path.stat())])
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(digest_of(shapes))


def llama_7b(tiny_llama, tmp_path):
    """A folder with LLaMA-2-7B's shapes and no data."""
    blocks = range(32)
    shapes = {f"model.layers.{n}.self_attn.{side}_proj.weight": [4096, 4096] for n in blocks for side in "qkvo"}
    shapes |= {f"model.layers.{n}.mlp.{side}_proj.weight": [11008, 4096] for n in blocks for side in ("gate", "up")}
    shapes |= {f"model.layers.{n}.mlp.down_proj.weight": [4096, 11008] for n in blocks}
    shapes |= {"model.embed_tokens.weight": [32000, 4096], "lm_head.weight": [32000, 4096]}
    norms = [f"model.layers.{n}.{norm}_layernorm.weight" for n in blocks for norm in ("input", "post_attention")]
    shapes |= {name: [4096] for name in (*norms, "model.norm.weight")}
    folder = tmp_path / "llama-7b"
    folder.mkdir()
    write_holes(folder / "model.safetensors", shapes)
    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    config |= {"num_hidden_layers": 32, "num_attention_heads": 32, "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_llama / name).read_bytes())
    return folder


@pytest.mark.slow
def test_a_7b_model_with_q_and_v_adapters_fits_the_plan(tiny_llama, first_run, tmp_path, capsys):
    """LLaMA-2-7B's shapes in a header without data: 2.1 GB a node, 4.2 MB a row, printed as a formula."""
    folder = llama_7b(tiny_llama, tmp_path)
    settings = ["sae=null", f"model.name_or_path={folder}", "model.dtype=bfloat16", "adapter.r=8"]
    planned = plan_of(first_run, *settings, f"runtime.root={tmp_path / 'empty'}")
    field = planned["field"]
    assert field["node_numbers"] == 32 * 2 * 4096 * 4096  # 2.1 GB in bfloat16
    assert field["row_numbers"] == 32 * 2 * 4096 * 8  # 4.2 MB
    assert field["nodes"] == sum(task["task"] == "landscape_shard" for task in planned["tasks"])
    rows = rows_of(first_run)
    assert planned["field_bytes"] == field["nodes"] * 2 * 32 * 2 * 4096**2 + rows * 2 * 32 * 2 * 4096 * 8
    # Two models of 13.5 GB, two float32 sums of 4.3 GB, and the graph of a micro-batch of 1,024 tokens.
    assert 27e9 + 8.6e9 < planned["memory_bytes"] < 48e9
    assert footprint(folder, AdapterTargets()).parameters == pytest.approx(6.74e9, rel=0.01)
    print_plan(Terminal(width=200), planned)
    printed = capsys.readouterr().out
    assert f"gradient field {field['nodes']} nodes x 1,074 M numbers x 2 bytes + {rows} rows x 2.097 M" in printed


@pytest.mark.slow
def test_all_linear_layers_of_a_7b_model_are_stored_in_factors(tiny_llama, first_run, tmp_path, capsys):
    """13 GB a node as whole gradients, 830 GB for 64 of them: in factors 40 GB with all that lies beside."""
    folder = llama_7b(tiny_llama, tmp_path)
    settings = ["sae=null", f"model.name_or_path={folder}", "model.dtype=bfloat16", "adapter.r=16"]
    settings += ["adapter.target_modules=all-linear", f"runtime.root={tmp_path / 'empty'}"]
    planned = plan_of(first_run, *settings)
    field, told = planned["field"], planned["field_storage"]
    outputs, inputs = 32 * (4 * 4096 + 2 * 11008 + 4096), 32 * (6 * 4096 + 11008)
    assert field["node_numbers"] == outputs * (16 + 16) + inputs * 16
    assert told["kind"] == "factored" and 128 * 2 * field["node_numbers"] + told["beside_bytes"] < 24e9
    assert field["rows"] * field["row_numbers"] * 2 <= 16e9
    step = planned["cost"]["real"]["memory_bytes"]
    held = {task["task"]: task["memory_bytes"] for task in planned["tasks"]}
    whole = plan_of(first_run, *settings, "landscape.storage=full")
    assert whole["field_storage"] == {"kind": "full"} and whole["field"]["node_numbers"] == 6476005376
    before = {task["task"]: task["memory_bytes"] for task in whole["tasks"]}
    for name in ("landscape_shard", "path"):
        assert before[name] - held[name] > 45e9  # two gradients of 26 GB in float32
        assert held[name] < 1.6 * step  # of a few short rows, where the graph is small
    print_plan(Terminal(width=200), planned)
    printed = capsys.readouterr().out
    assert "gradients are stored in factors: 16 columns exact, the rest of rank 16" in printed


def test_the_nodes_of_the_field_are_bounded_whatever_the_number_of_rows(first_run, tmp_path):
    rows = [{"prompt": f"question {n}", "completion": f"answer {n} {'.' * (n % 7)}"} for n in range(300)]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    many = ["sae=null", f"dataset.path={path}", "shards.max_rows=2", f"runtime.root={tmp_path / 'empty'}"]
    planned = plan_of(first_run, *many, "shards.node_depth=3")
    train = [t for t in planned["tasks"] if t["task"] == "landscape_shard"]
    heldout = plan_of(first_run, f"runtime.root={tmp_path / 'empty'}", "shards.max_rows=2", "shards.node_depth=3")
    assert planned["field"]["nodes"] == len(train) <= 2**3 + 2**3
    assert sum(t["task"] == "quality_shard" for t in planned["tasks"]) > 64
    assert heldout["field"]["nodes"] <= 2**3 + 2**3


def test_differences_name_the_innermost_setting():
    before = {"s": {"x": 1, "y": {"z": 1}}, "r": {"ids": "0", "encoding": "e"}, "ref": {"task": "t", "key": "k"}}
    now = {"s": {"x": 1, "y": {"z": 2}}, "r": {"ids": "1", "encoding": "e"}, "ref": {"task": "t", "key": "l"}}
    assert [change.path for change in changes(now, before)] == ["r", "ref", "s.y.z"]
    assert said(changes(now, before)) == "other r; s.y.z 1 -> 2; reads new ref"


def test_one_sae_more_is_told_by_how_many_are_read():
    first, second = {"weights": {"digest": "a"}}, {"weights": {"digest": "b"}}
    assert said(changes({"sae": [first, second]}, {"sae": first})) == "SAEs (1 -> 2)"
    assert said(changes({"sae": [second, first]}, {"sae": [first, second]})) == "other SAEs"


def test_several_digests_are_counted_and_not_shown():
    one, two = "0" * 64, "a" * 64
    assert said(changes({"items": [one, two]}, {"items": [one]})) == "other items (1 -> 2)"
    assert said(changes({"items": [two]}, {"items": [one]})) == "other items (1)"
    assert said(changes({"names": ["up", "down"]}, {"names": ["up"]})) == "names [up] -> [up, down]"


@pytest.mark.slow
def test_planning_imports_no_torch(first_run):
    code = (
        "import json, sys; from foretune.flows.commands.plan import make_plan;"
        "from foretune.flows.request import load_request;"
        f"planned = make_plan(load_request({str(first_run)!r}, ['training.learning_rate=2e-3']));"
        "print(json.dumps([planned['run'], [m for m in ('torch', 'transformers', 'sae_lens', 'peft', 'pandas') "
        "if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    run, imported = json.loads(done.stdout.splitlines()[-1])
    assert run == OTHER_RATE
    assert imported == []


def test_the_printed_plan_has_the_shards_of_a_task_on_one_line(first_run, capsys):
    print_plan(Terminal(width=200), plan_of(first_run, "training.learning_rate=2e-3"))
    printed = capsys.readouterr().out
    assert "training.learning_rate 0.001 -> 0.002" in printed
    assert sum(line.split()[:1] == ["landscape_shard"] for line in printed.splitlines()) == 1
    assert f"{OTHER_RATE} to run" in printed and "s of passes" in printed and "(measured on this root)" in printed


def test_a_gguf_file_that_was_never_converted_is_planned_as_it_will_run(first_run, tiny_llama, tmp_path):
    told = [
        f"model.name_or_path={written(tmp_path / 'tiny.gguf', tiny_llama)}",
        f"runtime.root={tmp_path / 'root'}",
        "effort.budget=0.33",
        "behaviour.enabled=false",
        "influence.solver.when=ranking",
    ]
    planned = plan_of(first_run, *told)
    assert planned["tasks"][0]["task"] == "model" and planned["cached"] == 0
    assert planned["effort"].startswith("on a budget") and planned["cost"]["real"]["tokens"]
    assert planned["memory_bytes"] and planned["field_bytes"]
    run = run_dag(first_run, *told)
    assert [(task["task"], task["key"]) for task in planned["tasks"]] == [(n, made.key) for n, made in run.step.steps]


def test_a_gguf_file_without_a_model_is_refused_by_its_plan(first_run, tmp_path):
    name, family = b"general.architecture", b"llama"
    field = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, len(family)) + family
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field)
    with pytest.raises(BadInput, match=r"model\.gguf"):
        plan_of(first_run, f"model.name_or_path={tmp_path / 'model.gguf'}", f"runtime.root={tmp_path / 'root'}")


def test_on_a_budget_the_run_is_replayed_without_rows_where_its_own_steps_cost_far_more(first_run):
    def planned(*overrides: str) -> set[str]:
        return {task["task"] for task in plan_of(first_run, *overrides)["tasks"]}

    assert {"causes", "without_rows"} <= planned() & planned("effort.budget=0.5", "training.batch_size=512")
    of_small_steps = planned("effort.budget=0.5")
    assert "causes" in of_small_steps and "without_rows" not in of_small_steps
