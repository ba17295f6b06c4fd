"""`copypool-node-stop --config FILE --for S [--wait S]`: what to run before a node's process is ended in order.

Announces the node's absence as `copypool maintenance node` does, by the node's own credential: nothing is rebuilt
elsewhere meanwhile, and reads go to the copies. It waits for its turn first, so that nodes that are replaced side by
side stop one after the other; when the time for that is over, it announces anyway. The announcement ends by itself when
the node registers again.

Exit code 0: announced; 1: nobody could be told, and the node may be stopped all the same: that is safe, as kill -9 is.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from copypool.protocol.errors import CopypoolError, NotFound, Unavailable
from copypool.protocol.internal import StopReply, StopRequest
from copypool.serving.commandline import refuse, settings_of
from copypool.serving.encryption import load_chain
from copypool.serving.settings import ConfigError
from copypool.tls import Chain
from copypool_node.config import NodeConfig, load
from copypool_node.disk import Disk
from copypool_node.identity import Identity, joined_identity
from copypool_node.link import CoordinatorLink

PROGRAM = "copypool-node-stop"
ASK_S = 5.0
AGAIN_S = 1.0


async def announce(config: NodeConfig, tls: Chain | None, identity: Identity, *, for_s: int, wait_s: float) -> None:
    """Return once the stop is announced; `CopypoolError` when nobody could be told.

    Waits for its turn for `wait_s`; coordinators that do not answer are waited for as long, and so is a leader whose
    release takes no announcement: in the middle of an upgrade the next leader may.
    """
    deadline_s = time.monotonic() + wait_s
    urls = list(config.coordinators)
    older: set[str] = set()  #: asked since the last pause, and their release does not know the call
    while True:
        anyway = time.monotonic() >= deadline_s
        link = CoordinatorLink(urls, tls=tls.client if tls is not None else None)
        try:
            request = StopRequest(identity.node_id, for_s, anyway)
            reply = await link.call("stop", request, StopReply, deadline_s=ASK_S, authorization=identity.authorization)
        except NotFound as exc:
            older.add(link.urls[0])
            urls = [url for url in config.coordinators if url.rstrip("/") not in older]
            if urls:
                continue
            if anyway:
                raise _older(config) from exc
            urls = list(config.coordinators)
        except CopypoolError as exc:
            if anyway or not exc.retryable:
                raise
            urls = list(config.coordinators)
        else:
            if reply.leader.rstrip("/") in older:
                if anyway:
                    raise _older(config)
            elif reply.leader:
                urls = [reply.leader, *config.coordinators]
                continue
            elif not reply.waits_for:
                return
            else:
                sys.stderr.write(f"{PROGRAM}: waiting for {', '.join(reply.waits_for)}\n")
        finally:
            await link.close()
        older.clear()
        await asyncio.sleep(min(AGAIN_S, max(0.0, deadline_s - time.monotonic())))


def _older(config: NodeConfig) -> Unavailable:
    return Unavailable(
        "the leading coordinator is of an older release, which takes no announcement from nodes: an operator's "
        f"`copypool maintenance node {config.name} --for 10m` does the same"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False)
    parser.add_argument("--for", dest="for_s", type=int, required=True)
    parser.add_argument("--wait", dest="wait_s", type=float, default=0.0)
    options, others = parser.parse_known_args(arguments)
    description = "Announce that this node stops: --for S [--wait S], seconds away and seconds to wait for its turn."
    config = settings_of(PROGRAM, description, others, load, lambda _: [])
    try:
        tls = load_chain(config.tls)
        identity = joined_identity(config.state_dir, Disk())
    except (ConfigError, CopypoolError) as error:
        refuse(PROGRAM, [str(error)])
    if identity is None:
        sys.stderr.write(f"{PROGRAM}: the node has never joined: there is nothing to announce\n")
        return 0
    try:
        asyncio.run(announce(config, tls, identity, for_s=options.for_s, wait_s=options.wait_s))
    except CopypoolError as error:
        sys.stderr.write(f"{PROGRAM}: not announced: {error.message}\n")
        return 1
    return 0


def script() -> None:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    script()
