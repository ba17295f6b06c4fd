"""The report as a Markdown page, and its place in README. Pure."""

from __future__ import annotations

from statistics import median

from bench.results import OWN, Figure, Report, Round, Row, Target, middle

BEGIN = "<!-- bench -->\n"
END = "<!-- end of bench -->"

_HEAD = [
    "| case | Copypool | beside it | ratio (least - most) | target | verdict | CPU per operation: Copypool; peer |",
    "|---|---|---|---|---|---|---|",
]


def page(report: Report) -> str:
    """When and where it was taken, the table, and a line for each row that needs one."""
    lines = [f"{line}\n" for line in _origins(report)]
    lines += [*_HEAD, *(line for row in report.rows for line in _lines(row))]
    return "\n".join([*lines, "", *_notes(report)]) + "\n"


def put_into(readme: str, content: str) -> str:
    """README with `content` between its markers; `ValueError` when it does not have each of them once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README needs {BEGIN.strip()} and {END} once each")
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + content + END + rest.partition(END)[2]


def _origins(report: Report) -> list[str]:
    """One sentence a run, the rows named when there are several."""
    found = []
    for run in report.runs:
        keys = [row.key for row in report.rows if row.taken_at == run.taken_at]
        which = f" ({', '.join(keys)})" if len(report.runs) > 1 else ""
        where = f"{run.machine.get('cpus', '?')} x {run.machine.get('cpu', '?')}"
        found.append(f"Taken {run.taken_at} at commit {run.commit} on {where}{which}.")
    return found


def _lines(row: Row) -> list[str]:
    """A line for each comparison of a row: with every peer, and of every figure."""
    found = [_against(row, peer) for peer in row.peers()]
    found += [_measured(row, figure) for figure in row.figures]
    found += [_unmeasured(row, each) for each in row.targets if not each.than and row.figure(each.figure) is None]
    if not found:
        own = row.of(OWN)
        found = [[_rate(row, own), "", "", "", "failed" if row.error or row.failures() else "", _cpu(own)]]
    titles = [row.case] + [""] * (len(found) - 1)
    return ["| " + " | ".join([title, *cells]) + " |" for title, cells in zip(titles, found, strict=True)]


def _against(row: Row, peer: str) -> list[str]:
    own, others = row.of(OWN), row.of(peer)
    ratios = row.ratios(peer)
    ratio = f"{median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})" if ratios else ""
    beside = f"{peer}: {_rate(row, others)}" if others else peer
    targets = [each for each in row.targets if each.than == peer]
    bounds = ", ".join(f"{each.sense} {each.bound:g} x" for each in targets)
    return [_rate(row, own), beside, ratio, bounds, _verdicts(row, targets), f"{_cpu(own)}; {_cpu(others)}"]


def _measured(row: Row, figure: Figure) -> list[str]:
    targets = [each for each in row.targets if not each.than and row.figure(each.figure) is figure]
    bounds = ", ".join(f"{each.sense} {each.bound:g} {figure.unit}".rstrip() for each in targets)
    return [figure.line(), "", "", bounds, _verdicts(row, targets), ""]


def _unmeasured(row: Row, target: Target) -> list[str]:
    return [target.figure, "", "", f"{target.sense} {target.bound:g}", row.verdict(target), ""]


def _verdicts(row: Row, targets: list[Target]) -> str:
    if not targets:
        return "failed" if row.error or row.failures() else ""
    return ", ".join(row.verdict(each) for each in targets)


def _rate(row: Row, rounds: list[Round]) -> str:
    if not rounds:
        return ""
    return f"{middle(rounds).rate:,.0f} {'' if row.unit == 'op' else row.unit}/s".replace(" /s", "/s")


def _cpu(rounds: list[Round]) -> str:
    """CPU of the median round: the sum and who used it, then the load generator's."""
    if not rounds:
        return ""
    best = middle(rounds)
    shares = ", ".join(f"{name} {used:.0f}" for name, used in best.cpu_us.items() if used >= 0.5)
    load = f" + load {best.load_us:.0f}" if best.load_us else ""
    total = f"{best.cpu_us_all:,.0f} us"
    return f"{total} ({shares}){load}" if len(best.cpu_us) > 1 else total + load


def _notes(report: Report) -> list[str]:
    found = []
    for row in report.rows:
        parts = [row.note] if row.note else []
        if row.tried and "short" in row.verdicts():
            parts.append(f"Short: {row.tried}")
        parts += [f"Not there: {each}" for each in row.missing]
        if row.failures():
            parts.append(f"FAILED requests: {row.failures()}")
        if row.error:
            parts.append(f"Did not run to its end: {row.error}")
        if parts:
            found.append(f"- {row.case}: {'. '.join(each.rstrip('.') for each in parts)}.")
    return found
