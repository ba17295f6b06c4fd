"""Runbooks name commands, objects and alerts that exist: a page that is wrong is worse than none."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from chart.rendering import CHART, render
from copypool.cli.main import cli

RUNBOOKS = CHART.parent / "runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
RELEASE = "copypool"
_BLOCK = re.compile(r"^ *```\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:copypool|helm test) [^`]+)`")
_OBJECT = re.compile(
    r"\b(deployment|statefulset|pod|pvc|certificate|exec|logs)[/ ]((?:[a-z0-9]+-)*copypool(?:-[a-z0-9]+)*)\b"
)


def commands(page: Path) -> list[str]:
    """Lines of the page's plain code blocks, and commands within its sentences."""
    text = page.read_text("utf-8")
    lines = [line.strip() for block in _BLOCK.findall(text) for line in block.splitlines()]
    return [line for line in lines if line] + _INLINE.findall(text)


def check(words: list[str]) -> None:
    """Raise `click.UsageError` unless the command line tool takes these words."""
    command: click.Command = cli
    context = command.make_context("copypool", list(words))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest and command.invoke_without_command:
            return
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, words
        command, context = found, found.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_taken_by_the_command_line_tool(page: Path) -> None:
    checked = 0
    for line in commands(page):
        words = shlex.split(line)
        if words[0] == "kubectl" and "--" in words:
            words = words[words.index("--") + 1 :]
        if words[0] == "copypool":
            check(words[1:])
            checked += 1
    assert checked or page.stem in ("etcd-full", "certificate-rotation")


def test_a_wrong_command_is_noticed() -> None:
    for line in ("restore nodes x", "restore node", "status --everything", "drain node x --never"):
        with pytest.raises((click.UsageError, AssertionError)):
            check(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_objects_are_those_of_the_chart(page: Path) -> None:
    values = {"fullnameOverride": RELEASE, "nodeGroups": {"copy-b": _group()}}
    certificates = {"mode": "certManager", "certManager": {"issuer": {"name": "ca"}}}
    rendered = render({**values, "tls": certificates})
    known = {item["metadata"]["name"] for item in rendered.objects}
    for name, item in rendered.of("StatefulSet").items():
        known |= {f"{name}-{ordinal}" for ordinal in range(item["spec"]["replicas"])}
    for kind, name in _OBJECT.findall("\n".join(commands(page))):
        claims = (
            {claim.replace("a-", "", 1) for claim in rendered.of("PersistentVolumeClaim")} if kind == "pvc" else set()
        )
        assert name in known | claims, f"{kind} {name}"


def _group() -> dict[str, object]:
    volume = {"pool": "copy", "poolType": "copy", "size": "1Gi"}
    return {"replicas": 1, "zone": "zone-b", "volumes": {"a": volume}}


def test_values_in_pages_are_values_of_the_chart() -> None:
    """`--set` in a page, and YAML blocks, are taken by the schema."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
            render(yaml.safe_load(block))
        for path, value in re.findall(r"--set ([\w.]+)=(\S+)", text):
            values: object = int(value) if value.isdigit() else value
            for key in reversed(path.split(".")):
                values = {key: values}
            assert isinstance(values, dict)
            render(values)


def alerts() -> dict[str, str]:
    """Runbook by alert."""
    content = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text("utf-8"))
    rules = [rule for group in content["groups"] for rule in group["rules"]]
    return {rule["alert"]: Path(rule["annotations"]["runbook"]).stem for rule in rules}


def test_every_alert_is_on_its_page() -> None:
    for alert, page in alerts().items():
        assert f"`{alert}`" in (RUNBOOKS / f"{page}.md").read_text("utf-8"), f"{alert} is not on the page {page}"


def test_pages_name_alerts_that_there_are() -> None:
    named = {alert for page in PAGES for alert in re.findall(r"`(Copypool[A-Z]\w+)`", page.read_text("utf-8"))}
    assert named <= set(alerts())


def test_the_index_lists_every_page() -> None:
    index = (RUNBOOKS / "README.md").read_text("utf-8")
    assert set(re.findall(r"\]\((\S+)\.md\)", index)) == {page.stem for page in PAGES} - {"README"}
