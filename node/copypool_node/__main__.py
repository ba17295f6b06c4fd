"""`copypool-node --config FILE [--check-config | --print-config]`: run one storage node until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping

import uvloop

from copypool.protocol.errors import CopypoolError
from copypool.serving.commandline import refuse, settings_of
from copypool.serving.encryption import load_chain, troubles
from copypool.serving.settings import ConfigError
from copypool.telemetry import logs, spans
from copypool.tls import Chain
from copypool_node.config import NodeConfig, load, read_join_token
from copypool_node.disk import Disk
from copypool_node.identity import has_joined
from copypool_node.node import Node
from copypool_node.server import NodeServer

log = logging.getLogger("copypool_node")

PROGRAM = "copypool-node"
CHECK_S = 1.0
GC_ALLOCATIONS = 50_000  #: objects made and kept between two runs of the collector of cycles


async def run(config: NodeConfig, tls: Chain | None, log_records: Mapping[str, int]) -> int:
    """Serve until a signal; the exit code."""
    node = Node(config, tls=tls)
    server = NodeServer(node, log_records)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    node.start()
    code = 0
    while not stop.is_set():
        try:
            async with asyncio.timeout(CHECK_S):
                await stop.wait()
        except TimeoutError:
            if node.failed is not None:
                code = 1
                break
    log.info("stopping")
    await node.stop()
    await server.stop()
    return code


def find_troubles(config: NodeConfig) -> list[str]:
    """What of the files that the settings name would keep the node from its work; empty: nothing. Blocking."""
    found = troubles(config.tls, config.url)
    found += filter(None, [spans.trouble(config.trace_export)])
    for volume in config.volumes:
        if not os.path.isdir(volume.path):
            found.append(f"volumes: {volume.name}: there is no directory {volume.path}")
    try:
        if not has_joined(config.state_dir, Disk()):
            read_join_token(config)
    except (ConfigError, CopypoolError) as exc:
        found.append(str(exc))
    return found


def main() -> None:
    """Entry point."""
    config = settings_of(PROGRAM, "A storage node of Copypool.", None, load, find_troubles)
    try:
        tls = load_chain(config.tls)
    except ConfigError as error:
        refuse(PROGRAM, [str(error)])
    os.umask(0o077)  # credentials, labels and extents are this user's alone
    records = logs.set_up(config.log_format, config.log_level, {"node": config.name})
    if found := spans.trouble(config.trace_export):
        refuse(PROGRAM, [found])
    end_export = spans.export(PROGRAM, config.name, config.trace_ratio) if config.trace_export == "otlp" else None
    # Requests leave no cycles behind: looking for some at every 700 allocations costs a twentieth of the CPU.
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])
    code = uvloop.run(run(config, tls, records.counts))
    if end_export is not None:
        end_export()
    sys.exit(code)


if __name__ == "__main__":
    main()
