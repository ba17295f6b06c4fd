"""What the command line says of proofs, explanations and processes: the words fit what was counted."""

from __future__ import annotations

from copypool.cli.insight import coverage_text, explain_text
from copypool.protocol.insight import Coverage, ExplainReply, SegmentExplained
from copypool_coordinator.process_api import process_info
from copypool_coordinator.rows import FORMAT, ProcessRow


def test_what_a_proof_by_extents_counts_is_called_records() -> None:
    found = Coverage(files=3, bytes=30, at_policy_files=3, at_policy_bytes=30, proven_files=2, proven_bytes=20)
    text = coverage_text(found, "pool primary", "records")
    assert text.startswith("NOT PROVEN: 1 of 3 records (10 B) of pool primary")
    assert "files" not in text
    assert "NOT PROVEN: 1 of 3 files" in coverage_text(found, "default")


def test_nothing_is_not_proven_but_empty() -> None:
    assert coverage_text(Coverage(), "pool p") == "EMPTY: there is nothing in pool p: nothing to prove"


def test_an_explanation_does_not_take_policy_for_fact() -> None:
    segment = SegmentExplained(1, 4096, 10, True, "primary", ["copy"], "copy", [], True, True, [], [])
    text = explain_text(ExplainReply("ns", "f", 1, 10, "blake3:x", 0.0, [segment], 1, True, True, []))
    assert "acknowledged by" not in text
    assert "its class has ack rule 'copy'" in text


def test_a_process_that_is_being_cancelled_says_so() -> None:
    row = ProcessRow(FORMAT, "move", "volume v1", "t", 1, [1], [], cancelled_by="ann")
    assert process_info("1", row, row, 2).outcome == "it is being cancelled, as ann asked"
