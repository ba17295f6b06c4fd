"""What a coordinator may rely on when it asks etcd: transactions, ranges, leases, logins, TLS."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from copypool.protocol.errors import BrokenInvariant, CatalogDown, Fenced, NoSpace, OutcomeUnknown
from copypool.serving.settings import ConfigError
from copypool.tls import TlsFiles
from copypool_coordinator.etcd import (
    Etcd,
    EtcdSettings,
    create_equals,
    delete,
    get,
    mod_equals,
    put,
    value_equals,
)
from copypool_coordinator.etcd.verdicts import RevisionGone
from kit.certificates import Authority
from kit.coordinator_process import running_coordinator
from kit.etcd_process import EtcdCluster
from kit.eventually import eventually


@asynccontextmanager
async def connected(*endpoints: str, timeout_s: float = 5.0) -> AsyncGenerator[Etcd, None]:
    etcd = await Etcd.connect(EtcdSettings(endpoints, timeout_s=timeout_s))
    try:
        yield etcd
    finally:
        await etcd.close()


@pytest.fixture
async def etcd() -> AsyncGenerator[Etcd, None]:
    async with EtcdCluster() as cluster, connected(*cluster.endpoints) as client:
        yield client


async def etcdctl(endpoint: str, *arguments: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        ["etcdctl", "--endpoints", endpoint, *arguments],
        check=True,
        capture_output=True,
        timeout=60,
        env={"ETCDCTL_API": "3", "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    return done.stdout.decode()


async def test_a_transaction_runs_one_branch_and_tells_what_it_read(etcd: Etcd) -> None:
    made = await etcd.txn([mod_equals(b"a", 0)], [put(b"a", b"1"), get(b"a"), put(b"b", b"2")], [get(b"a"), get(b"b")])
    assert made.succeeded
    assert [len(rows) for rows in made.responses] == [0, 1, 0]
    row = made.responses[1][0]
    assert (row.key, row.value, row.mod_revision, row.create_revision, row.version) == (
        *(b"a", b"1"),
        *(made.revision, made.revision, 1),
    )

    again = await etcd.txn([mod_equals(b"a", 0)], [put(b"a", b"9")], [get(b"a"), get(b"b"), get(b"none")])
    assert not again.succeeded
    assert [[kv.value for kv in rows] for rows in again.responses] == [[b"1"], [b"2"], []]
    assert again.revision == made.revision, "a failure branch of reads changes nothing"


async def test_a_session_written_again_is_fenced_by_mod_revision_and_not_by_create_revision(etcd: Etcd) -> None:
    """A2: the epoch of a session must be the mod-revision of the put that registered it."""
    first = await etcd.txn([create_equals(b"s/n1", 0)], [put(b"s/n1", b"process 1")])
    second = await etcd.txn([], [put(b"s/n1", b"process 2")])
    assert second.revision > first.revision

    by_create = await etcd.txn([create_equals(b"s/n1", first.revision)], [put(b"x", b"old epoch")])
    assert by_create.succeeded, "a compare of create-revisions does not see the new registration"
    by_mod = await etcd.txn([mod_equals(b"s/n1", first.revision)], [put(b"x", b"old epoch")])
    assert not by_mod.succeeded
    assert (await etcd.txn([mod_equals(b"s/n1", second.revision)], [put(b"x", b"new epoch")])).succeeded


async def test_a_value_compare_needs_the_row_and_the_value(etcd: Etcd) -> None:
    assert not (await etcd.txn([value_equals(b"k", b"v")], [put(b"done", b"1")])).succeeded
    await etcd.txn([], [put(b"k", b"v")])
    assert (await etcd.txn([value_equals(b"k", b"v")], [put(b"done", b"1")])).succeeded
    assert not (await etcd.txn([value_equals(b"k", b"w")], [put(b"done", b"2")])).succeeded


async def test_deletes_by_key_and_by_range(etcd: Etcd) -> None:
    await etcd.txn([], [put(b"u/%d" % number, b"") for number in range(5)])
    done = await etcd.txn([], [delete(b"u/0"), delete(b"u/3", b"u0"), delete(b"u/none"), get(b"u/", b"u0")])
    assert done.responses[:3] == [(), (), ()]
    assert [row.key for row in done.responses[3]] == [b"u/1", b"u/2"]


async def test_a_group_of_the_largest_size_commits_and_a_larger_one_is_refused_here(etcd: Etcd) -> None:
    keys = [b"f/%d" % number for number in range(128)]
    done = await etcd.txn([mod_equals(key, 0) for key in keys], [put(key, b"v") for key in keys])
    assert done.succeeded
    read = await etcd.txn([], [get(key) for key in keys])
    assert [rows[0].key for rows in read.responses] == keys
    with pytest.raises(ValueError, match="128"):
        await etcd.txn([], [get(b"f/%d" % number) for number in range(129)])
    with pytest.raises(ValueError, match="without operations"):
        await etcd.txn([mod_equals(b"f/1", 0)], [])


async def test_a_request_against_the_rules_is_a_bug_and_changes_nothing(etcd: Etcd) -> None:
    with pytest.raises(BrokenInvariant, match="duplicate key"):
        await etcd.txn([], [put(b"a", b"1"), put(b"a", b"2")])
    with pytest.raises(BrokenInvariant, match="too large"):
        await etcd.txn([], [put(b"a", b"v" * 1_600_000)])
    assert await etcd.get(b"a") is None


async def test_ranges_are_bounded_paged_and_of_one_revision(etcd: Etcd) -> None:
    made = await etcd.txn([], [put(b"r/%d" % number, b"old") for number in range(6)])
    page = await etcd.range(b"r/", b"r0", limit=4)
    assert [row.key for row in page.rows] == [b"r/0", b"r/1", b"r/2", b"r/3"]
    assert (page.more, page.count, page.revision) == (True, 6, made.revision)
    await etcd.txn([], [put(b"r/5", b"new"), delete(b"r/4")])
    rest = await etcd.range(page.rows[-1].key + b"\0", b"r0", revision=page.revision)
    assert [(row.key, row.value) for row in rest.rows] == [(b"r/4", b"old"), (b"r/5", b"old")]
    names = await etcd.range(b"r/", b"r0", keys_only=True, serializable=True)
    assert {row.value for row in names.rows} == {b""}
    for begin, end in ((b"r/", b"\0"), (b"r/", b"r/"), (b"r0", b"r/"), (b"", b"\0")):
        with pytest.raises(ValueError, match="bounded"):
            await etcd.range(begin, end)


async def test_a_compacted_revision_is_told_apart_from_an_outage(etcd: Etcd) -> None:
    old = await etcd.txn([], [put(b"k", b"1")])
    new = await etcd.txn([], [put(b"k", b"2")])
    await etcd.compact(new.revision)
    await etcd.compact(old.revision)
    with pytest.raises(RevisionGone) as compacted:
        await etcd.range(b"k", b"l", revision=old.revision)
    assert compacted.value.details == {"compacted": True}
    with pytest.raises(RevisionGone) as future:
        await etcd.range(b"k", b"l", revision=new.revision + 1000)
    assert future.value.details == {"compacted": False}
    with pytest.raises(RevisionGone):
        await etcd.compact(new.revision + 1000)


async def test_a_lease_holds_its_row_while_renewed_and_takes_it_along(etcd: Etcd) -> None:
    lease = await etcd.lease_grant(15)
    await etcd.txn([], [put(b"s/n1", b"session", lease)])
    row = await etcd.get(b"s/n1")
    assert row is not None
    assert row.lease == lease
    assert await etcd.lease_keep_alive(lease) == 15
    await etcd.lease_revoke(lease)
    assert await etcd.get(b"s/n1") is None
    assert await etcd.lease_keep_alive(lease) == 0
    await etcd.lease_revoke(lease)
    with pytest.raises(Fenced):
        await etcd.txn([], [put(b"other", b"1"), put(b"s/n1", b"session", lease)])
    assert await etcd.get(b"other") is None, "nothing of a refused transaction is applied"


async def test_a_lease_that_is_not_renewed_ends(etcd: Etcd) -> None:
    lease = await etcd.lease_grant(5)
    await etcd.txn([], [put(b"s/n1", b"session", lease)])

    async def gone() -> bool:
        return await etcd.get(b"s/n1") is None

    await eventually(gone, "the session row goes with its lease")
    assert await etcd.lease_keep_alive(lease) == 0


async def test_status_names_every_endpoint_in_order_and_says_what_is_wrong() -> None:
    async with EtcdCluster() as cluster, connected(*cluster.endpoints, "127.0.0.1:1") as etcd:
        assert await etcd.with_smaller_transactions() == []
        good, bad = await etcd.status()
        assert (good.endpoint, good.is_leader, good.error) == (cluster.endpoints[0], True, "")
        assert good.version.startswith("3.")
        assert good.db_size_bytes > 0
        assert (bad.endpoint, bad.error) == ("127.0.0.1:1", "takes no connection")


async def test_endpoints_may_be_dns_names() -> None:
    async with EtcdCluster() as cluster:
        name = f"localhost:{cluster.members[0].client_port}"
        async with connected(name) as etcd:
            await etcd.txn([], [put(b"k", b"v")])
            assert await etcd.get(b"k") is not None


async def test_a_name_that_does_not_resolve_is_passed_over() -> None:
    async with EtcdCluster() as cluster, connected("no-such-host.invalid:2379", *cluster.endpoints) as etcd:
        assert (await etcd.txn([], [put(b"k", b"v")])).succeeded


async def test_tls_with_client_certificates(tmp_path: Path) -> None:
    authority = await asyncio.to_thread(Authority, tmp_path)
    stranger = await asyncio.to_thread(Authority, tmp_path, "stranger")
    server = await asyncio.to_thread(authority.issue, "server")
    client = await asyncio.to_thread(authority.issue, "client")
    server_tls = (server.authority, server.certificate, server.key)
    async with EtcdCluster(server_tls=server_tls, client_certificates=True) as cluster:
        port = cluster.members[0].client_port
        tls = TlsFiles(client.authority, client.certificate, client.key)
        for endpoint in (f"127.0.0.1:{port}", f"localhost:{port}"):
            etcd = await Etcd.connect(EtcdSettings((endpoint,), tls=tls))
            try:
                assert (await etcd.txn([], [put(b"k", b"v")])).succeeded
            finally:
                await etcd.close()
        for refused in (
            TlsFiles(client.authority),
            TlsFiles(stranger.certificate, client.certificate, client.key),
            None,
        ):
            with pytest.raises(CatalogDown):
                await Etcd.connect(EtcdSettings((f"localhost:{port}",), tls=refused, timeout_s=3.0))


async def test_a_start_that_finds_no_member_says_why(tmp_path: Path) -> None:
    authority = await asyncio.to_thread(Authority, tmp_path)
    stranger = await asyncio.to_thread(Authority, tmp_path, "stranger")
    server = await asyncio.to_thread(authority.issue, "server")
    async with EtcdCluster(server_tls=(server.authority, server.certificate, server.key)) as cluster:
        endpoint = f"127.0.0.1:{cluster.members[0].client_port}"
        wrong = EtcdSettings((endpoint,), tls=TlsFiles(str(stranger.certificate)), timeout_s=3.0)
        with pytest.raises(CatalogDown, match=f"{endpoint}: .*CERTIFICATE_VERIFY_FAILED"):
            await Etcd.connect(wrong)
    with pytest.raises(CatalogDown, match=f"{endpoint}: .*refused"):
        await Etcd.connect(EtcdSettings((endpoint,), timeout_s=3.0))


async def test_login_by_password_and_a_new_token_when_the_old_one_is_forgotten() -> None:
    async with EtcdCluster() as cluster:
        endpoint = cluster.endpoints[0]
        await etcdctl(endpoint, "user", "add", "root:root-password")
        await etcdctl(endpoint, "user", "grant-role", "root", "root")
        await etcdctl(endpoint, "user", "add", "cp:secret")
        await etcdctl(endpoint, "role", "add", "catalog")
        await etcdctl(endpoint, "role", "grant-permission", "catalog", "readwrite", "--prefix=true", "/cp/")
        await etcdctl(endpoint, "user", "grant-role", "cp", "catalog")
        await etcdctl(endpoint, "auth", "enable")

        etcd = await Etcd.connect(EtcdSettings((endpoint,), user="cp", password="secret"))
        try:
            await etcd.txn([], [put(b"/cp/k", b"v")])
            with pytest.raises(CatalogDown, match="permission denied"):
                await etcd.txn([], [put(b"/elsewhere", b"v")])
            # Simple tokens are in the member's memory alone.
            await cluster.members[0].restart()

            async def served() -> bool:
                with suppress(CatalogDown):
                    return await etcd.get(b"/cp/k") is not None
                return False

            await eventually(served, "the member takes the user in again")
            row = await etcd.get(b"/cp/k")
            assert row is not None
            assert (await etcd.txn([mod_equals(b"/cp/k", row.mod_revision)], [put(b"/cp/k", b"w")])).succeeded
            # A change of the rights makes every token stale.
            await etcdctl(endpoint, "--user", "root:root-password", "role", "add", "another")
            assert (await etcd.txn([], [put(b"/cp/k", b"x")])).succeeded
        finally:
            await etcd.close()

        with pytest.raises(CatalogDown, match="refuses the user"):
            await Etcd.connect(EtcdSettings((endpoint,), user="cp", password="wrong"))
        nobody = await Etcd.connect(EtcdSettings((endpoint,)))
        try:
            with pytest.raises(CatalogDown, match="refuses the user"):
                await nobody.get(b"/cp/k")
        finally:
            await nobody.close()


async def test_a_member_that_takes_smaller_transactions_is_refused_at_the_start() -> None:
    async with EtcdCluster(arguments=["--max-txn-ops", "127"]) as cluster:
        async with connected(*cluster.endpoints, "127.0.0.1:1") as etcd:
            assert await etcd.with_smaller_transactions() == list(cluster.endpoints)
        with pytest.raises(ConfigError, match="--max-txn-ops is below 128"):
            async with running_coordinator(cluster.endpoints[0]):
                pass


async def test_a_full_store_refuses_writes_clearly_while_reads_and_deletes_go_on() -> None:
    quota = ["--quota-backend-bytes", "2000000"]
    async with EtcdCluster(arguments=quota) as cluster, connected(*cluster.endpoints) as etcd:
        written = 0

        async def fill() -> None:
            nonlocal written
            for written in range(100):
                await etcd.txn([], [put(b"big/%03d" % written, b"v" * 100_000)])

        with pytest.raises(OutcomeUnknown) as first:
            await fill()
        assert first.value.details == {"no_space": True}, "NOSPACE does not prove that nothing was applied"
        with pytest.raises(NoSpace):
            await etcd.txn([], [put(b"small", b"1")])
        assert await etcd.get(b"small") is None
        assert await etcd.get(b"big/000") is not None
        for number in range(written + 1):
            await etcd.txn([], [delete(b"big/%03d" % number)])
        last = await etcd.txn([], [delete(b"none"), get(b"none")])
        await etcd.compact(last.revision)
        await etcdctl(cluster.endpoints[0], "defrag")
        await etcdctl(cluster.endpoints[0], "alarm", "disarm")
        assert (await etcd.txn([], [put(b"small", b"1")])).succeeded


def test_settings_refuse_what_is_no_endpoint_and_hide_the_password() -> None:
    for endpoint in ("http://h:1", "h", "h:", ":1", "h:x"):
        with pytest.raises(ValueError, match="host:port"):
            EtcdSettings((endpoint,))
    with pytest.raises(ValueError, match="no etcd endpoint"):
        EtcdSettings(())
    with pytest.raises(ValueError, match="go together"):
        TlsFiles(Path("ca"), Path("certificate"))
    assert "secret" not in repr(EtcdSettings(("h:1",), user="u", password="secret"))
