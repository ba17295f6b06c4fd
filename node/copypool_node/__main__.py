"""`copypool-node --config FILE`: run one storage node until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import uvloop

from copypool.protocol.errors import CopypoolError
from copypool.telemetry import logs
from copypool_node.config import NodeConfig, load_config
from copypool_node.node import Node
from copypool_node.server import NodeServer

log = logging.getLogger("copypool_node")

CHECK_S = 1.0
GC_ALLOCATIONS = 50_000  #: objects made and kept between two runs of the collector of cycles


async def run(config: NodeConfig, log_records: Mapping[str, int]) -> int:
    """Serve until a signal; the exit code."""
    node = Node(config)
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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="copypool-node", description="A storage node of Copypool.")
    parser.add_argument("--config", required=True, help="TOML file; see node/README.md")
    parser.add_argument("--check-config", action="store_true", help="check the file and exit")
    arguments = parser.parse_args()
    try:
        config = load_config(Path(arguments.config).read_bytes(), os.environ)
    except OSError as exc:
        parser.exit(2, f"copypool-node: cannot read {arguments.config}: {exc}\n")
    except CopypoolError as exc:
        parser.exit(2, f"copypool-node: {exc.message}\n")
    if arguments.check_config:
        return
    os.umask(0o077)  # credentials, labels and extents are this user's alone
    records = logs.set_up(config.log_format, config.log_level, {"node": config.name})
    # Requests leave no cycles behind: looking for some at every 700 allocations costs a twentieth of the CPU.
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])
    sys.exit(uvloop.run(run(config, records.counts)))


if __name__ == "__main__":
    main()
