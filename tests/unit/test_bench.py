"""The bench's own arithmetic: verdicts, merging of runs, the table, and cases that fail without stopping the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bench import storing
from bench.frame import Contest, Found, Gauge, Ground, PeerMissing, Plan
from bench.results import OWN, Figure, Report, Round, Row, Run, Target, at_least, at_most, merge
from bench.running import run
from bench.table import BEGIN, END, page, put_into

PEER = "filer"


def turn(side: str, rate: float, failed: int = 0) -> Round:
    return Round(side, round(rate * 2), 2.0, {"one": 10.0, "two": 30.0}, failed)


def row(*rounds: Round, targets: tuple[Target, ...] = (), key: str = "put", at: str = "t1", error: str = "") -> Row:
    return Row(key, f"case {key}", at, "abc", targets=list(targets), rounds=list(rounds), error=error)


def circumstances(at: str) -> Run:
    return Run(at, "abc", {"cpus": "2", "cpu": "some"}, {}, {})


# -- verdicts ---------------------------------------------------------------------------------
def test_a_ratio_is_the_median_over_neighbouring_rounds() -> None:
    rounds = [turn(OWN, 300), turn(PEER, 100), turn(OWN, 100), turn(PEER, 100), turn(OWN, 50), turn(PEER, 10)]
    found = row(*rounds)
    assert found.ratios(PEER) == [3.0, 1.0, 5.0]
    assert found.verdict(at_least(3.0, than=PEER)) == "met"
    assert found.verdict(at_least(3.01, than=PEER)) == "short"


def test_each_target_of_a_row_has_a_verdict_of_its_own() -> None:
    targets = (at_least(2.0, than=PEER), at_least(2.0, than="nginx"))
    assert row(turn(OWN, 200), turn(PEER, 100), turn("nginx", 150), targets=targets).verdicts() == ["met", "short"]


def test_a_peer_that_was_not_there_is_not_measured() -> None:
    assert row(turn(OWN, 200)).verdict(at_least(2.0, than=PEER)) == "not measured"


def test_failed_requests_of_copypool_meet_nothing_and_those_of_a_peer_do_not_matter() -> None:
    target = at_least(1.0, than=PEER)
    assert row(turn(OWN, 200, failed=1), turn(PEER, 100)).verdict(target) == "failed"
    assert row(turn(OWN, 200), turn(PEER, 100, failed=1)).verdict(target) == "met"


def test_a_case_that_broke_off_meets_nothing() -> None:
    assert row(turn(OWN, 200), turn(PEER, 100), error="gone").verdict(at_least(1.0, than=PEER)) == "failed"


def test_a_value_is_held_against_its_bound() -> None:
    found = row()
    found.figures = [Figure("memory", 350.0, "MB"), Figure("failed", 1.0)]
    assert found.verdict(at_most(350, figure="memory")) == "met"
    assert found.verdict(at_most(0, figure="failed")) == "short"
    assert found.verdict(at_most(5, figure="other")) == "not measured"
    assert found.verdict(at_most(5)) == "not measured", "which of the two is meant cannot be told"


def test_a_target_without_a_name_is_of_the_only_figure() -> None:
    found = row()
    found.figures = [Figure("plan pass", 41.0, "ms")]
    assert found.verdict(at_most(50)) == "met"


def test_a_figure_of_many_values_is_their_median_unless_the_case_says_otherwise() -> None:
    found = Found(lambda line: None)
    found.figure("start", [3.0, 1.0, 2.0], "s")
    found.figure("fail-over", [3.0, 1.0, 2.0], "s", value=3.0)
    assert [each.value for each in found.figures] == [2.0, 3.0]
    assert found.figures[1].line() == "fail-over: 3 s (1-3)"


# -- merging ----------------------------------------------------------------------------------
def test_rows_taken_later_replace_their_own_kind_and_keep_their_own_moment() -> None:
    first = merge(Report(), circumstances("t1"), [row(key="b"), row(key="a")], ["a", "b"])
    second = merge(first, circumstances("t2"), [row(key="b", at="t2")], ["a", "b"])
    assert [(each.key, each.taken_at) for each in second.rows] == [("a", "t1"), ("b", "t2")]
    assert [each.taken_at for each in second.runs] == ["t1", "t2"]


def test_a_run_goes_with_its_last_row_and_a_row_with_its_case() -> None:
    first = merge(Report(), circumstances("t1"), [row(key="a"), row(key="gone")], ["a", "gone"])
    second = merge(first, circumstances("t2"), [row(key="a", at="t2")], ["a"])
    assert [each.key for each in second.rows] == ["a"]
    assert [each.taken_at for each in second.runs] == ["t2"]


def test_rows_of_one_run_may_come_one_by_one() -> None:
    report = Report()
    for key in ("a", "b"):
        report = merge(report, circumstances("t1"), [row(key=key)], ["a", "b"])
    assert [each.key for each in report.rows] == ["a", "b"]
    assert len(report.runs) == 1


# -- the table --------------------------------------------------------------------------------
def test_the_table_has_a_line_for_each_comparison() -> None:
    found = row(turn(OWN, 4000), turn(PEER, 1000), turn("nginx", 8000), targets=(at_least(2.0, than=PEER),))
    lines = page(Report([circumstances("t1")], [found])).splitlines()
    cpu = "40 us (one 10, two 30)"
    assert f"| case put | 4,000/s | filer: 1,000/s | 4.00 (4.00 - 4.00) | >= 2 x | met | {cpu}; {cpu} |" in lines
    assert f"|  | 4,000/s | nginx: 8,000/s | 0.50 (0.50 - 0.50) |  |  | {cpu}; {cpu} |" in lines


def test_the_table_has_a_line_for_each_figure_and_says_what_is_missing() -> None:
    found = row(targets=(at_most(250, figure="gap"), at_most(0, figure="failed")))
    found.figures = [Figure("gap", 90.0, "ms", [80.0, 90.0, 99.0])]
    lines = page(Report([circumstances("t1")], [found])).splitlines()
    assert "| case put | gap: 90 ms (80-99) |  |  | <= 250 ms | met |  |" in lines
    assert "|  | failed |  |  | <= 0 | not measured |  |" in lines


def test_a_row_that_did_not_run_says_so_and_a_short_one_what_was_tried() -> None:
    broken = row(key="a", error="Overdue: not done within 5 s")
    short = row(turn(OWN, 1), turn(PEER, 1), targets=(at_least(2.0, than=PEER),), key="b")
    short.tried = "bigger groups"
    content = page(Report([circumstances("t1")], [broken, short]))
    assert "| case a |  |  |  |  | failed |  |" in content
    assert "- case a: Did not run to its end: Overdue: not done within 5 s." in content
    assert "- case b: Short: bigger groups." in content


def test_readme_keeps_all_but_what_stands_between_the_markers() -> None:
    assert put_into(f"before\n{BEGIN}old\n{END}after\n", "new\n") == f"before\n{BEGIN}new\n{END}after\n"
    with pytest.raises(ValueError, match="once each"):
        put_into("no markers", "new\n")


def test_what_is_stored_is_read_back_and_the_table_made_again(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}")
    report = merge(Report(), circumstances("t1"), [row(turn(OWN, 2), turn(PEER, 1))], ["put"])
    storing.save(report, results=tmp_path / "results", readme=readme)
    assert storing.load(results=tmp_path / "results") == report
    assert page(report) in readme.read_text()


def test_a_quick_run_leaves_readme_alone(tmp_path: Path) -> None:
    storing.save(Report(), quick=True, results=tmp_path / "results", readme=tmp_path / "README.md")
    assert storing.load(quick=True, results=tmp_path / "results") == Report()
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("stored", [None, b'{"rows": 1}'])
def test_a_table_is_not_made_of_nothing(tmp_path: Path, stored: bytes | None) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nmeasured\n{END}\n")
    if stored is not None:
        (tmp_path / "latest.json").write_bytes(stored)
    assert not storing.renew_tables(results=tmp_path, readme=readme)
    assert "measured" in readme.read_text()
    storing.save(Report([circumstances("t1")], [row(turn(OWN, 2), turn(PEER, 1))]), results=tmp_path, readme=readme)
    assert storing.renew_tables(results=tmp_path, readme=readme)
    assert "measured" not in readme.read_text()


def test_readme_shows_what_is_stored() -> None:
    """`python -m bench --table` puts it there."""
    stored = storing.load()
    if stored.rows:
        assert BEGIN + page(stored) + END in storing.README.read_text("utf-8")


# -- running ----------------------------------------------------------------------------------
def measured(*cases: Contest | Gauge, rounds: int = 2) -> list[Row]:
    rows: list[Row] = []
    run(cases, Plan(rounds=rounds), taken_at="t1", commit="abc", say=lambda line: None, keep=rows.append)
    return rows


def test_sides_take_turns_and_one_that_is_missing_leaves_the_others_going() -> None:
    order: list[str] = []

    def own(ground: Ground) -> Round:
        order.append(OWN)
        return turn("", 2)

    def peer(ground: Ground) -> Round:
        order.append(PEER)
        return turn("", 1)

    def missing(ground: Ground) -> Round:
        raise PeerMissing("install it")

    (found,) = measured(Contest("a", "case a", ((OWN, own), ("nginx", missing), (PEER, peer))))
    assert order == [OWN, PEER, OWN, PEER]
    assert found.ratios(PEER) == [2.0, 2.0]
    assert found.missing == ["nginx: install it"]
    assert not found.error


def test_a_case_that_fails_keeps_what_it_had_and_the_next_one_runs() -> None:
    def broken(ground: Ground, found: Found) -> None:
        found.figure("early", 1.0)
        raise RuntimeError("the disk is gone")

    rows = measured(Gauge("a", "case a", broken), Gauge("b", "case b", lambda ground, found: found.figure("x", 2.0)))
    assert rows[0].error == "RuntimeError: the disk is gone"
    assert [each.name for each in rows[0].figures] == ["early"]
    assert (rows[1].error, len(rows[1].figures)) == ("", 1)


def test_a_case_that_hangs_ends_at_its_deadline_also_where_failures_are_handled() -> None:
    def hang(ground: Ground, found: Found) -> None:
        while True:
            with suppress(Exception):  # as a client that tries again for ever
                time.sleep(60)

    rows = measured(
        Gauge("a", "case a", hang, deadline_s=0.05),
        Gauge("b", "case b", lambda ground, found: found.figure("x", 2.0)),
    )
    assert rows[0].error == "Overdue: not done within 0.05 s"
    assert not rows[1].error


def test_neighbours_share_a_ground_unless_one_of_them_failed() -> None:
    started: list[str] = []

    @contextmanager
    def side() -> Iterator[str]:
        started.append("begun")
        yield "side"
        started.append("ended")

    def take(ground: Ground, found: Found) -> None:
        assert ground.use(side) == "side"
        assert list(ground.folder.iterdir()) == []

    def fail(ground: Ground, found: Found) -> None:
        take(ground, found)
        raise RuntimeError("broken")

    measured(Gauge("a", "a", take, ground="one"), Gauge("b", "b", take, ground="one"), Gauge("c", "c", take))
    assert started == ["begun", "ended"] * 2
    started.clear()
    measured(Gauge("a", "a", fail, ground="one"), Gauge("b", "b", take, ground="one"))
    assert started == ["begun", "ended"] * 2
