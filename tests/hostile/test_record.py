"""The figures that are stored are those of a whole campaign, and what it found outside the contract is known."""

from __future__ import annotations

import json

from tests.hostile.record import HERE

GENERATED, WRITTEN = 2000, 300


KNOWN = {"written: rows": 1}
"""Outside the contract in the stored run, at most: a folder of splits, which is a dataset; the table expected a refusal."""


def test_the_stored_campaign_was_whole_and_its_faults_are_known():
    kept = json.loads((HERE / "hostile.json").read_text())
    tried = {"written": 0, "guided": 0, "generated": 0}
    for each in kept:
        sort = each["kind"].partition(":")[0]
        tried[sort if sort in tried else "generated"] += each["tried"]
        assert each["held"] + each["failed"] == each["tried"] > 0 and len(each["left"]) == each["failed"], each["kind"]
        assert each["failed"] <= KNOWN.get(each["kind"], 0), each["left"]
    assert tried["generated"] >= GENERATED and tried["written"] >= WRITTEN and tried["guided"], tried
