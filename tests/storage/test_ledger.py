"""The ledger of a dataset on both kinds of root."""

from __future__ import annotations

import pytest

from foretune.storage.errors import BadInput
from foretune.storage.ledger import Ledger, accepted_runs
from foretune.storage.places import Place


def test_a_new_ledger_knows_nothing(root):
    ledger = Ledger(root, "tickets")
    assert ledger.accepted() is None
    assert ledger.verdict("0" * 40) is None
    assert accepted_runs(root) == set()


def test_the_pointer_names_the_last_accepted_run_of_its_dataset(root):
    ledger, other = Ledger(root, "Support tickets / DE"), Ledger(root, "other")
    ledger.accept({"run_id": "first"})
    other.accept({"run_id": "elsewhere"})
    ledger.accept({"run_id": "second"})
    assert ledger.accepted() == {"run_id": "second"}
    assert accepted_runs(root) == {"second", "elsewhere"}
    assert (Place(root) / "accepted" / "support-tickets-de.json").exists()


def test_a_verdict_is_kept_under_its_key(root):
    verdict = {"verdict": "fail", "dataset": "d.jsonl", "run_id": "r", "accepted": False}
    verdict |= {"crossings": [], "skipped": [], "comparison": None}
    Ledger(root, "tickets").keep("a" * 40, verdict)
    assert Ledger(root, "tickets").verdict("a" * 40) == verdict
    assert Ledger(root, "tickets").verdict("b" * 40) is None


def test_a_torn_pointer_is_one_line(disk_root):
    Ledger(disk_root, "tickets").accept({"run_id": "first"})
    (Place(disk_root) / "accepted" / "tickets.json").write_bytes(b'{"run_id"')
    with pytest.raises(BadInput, match=r"accepted/tickets.json: unreadable .*delete the file and vet again"):
        Ledger(disk_root, "tickets").accepted()
