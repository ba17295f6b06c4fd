"""`copypool-coordinator --config FILE [--check-config]`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvloop

from copypool.protocol.errors import CopypoolError
from copypool.telemetry import logs
from copypool_coordinator.config import Config, ConfigError, Secrets, load, load_secrets
from copypool_coordinator.process import Coordinator

EXIT_CONFIG = 2
GC_ALLOCATIONS = 50_000  #: objects made and kept between two runs of the collector of cycles


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a coordinator until SIGTERM or SIGINT; 2 for settings that cannot be used, 1 for a failure."""
    parser = argparse.ArgumentParser(prog="copypool-coordinator", description="Catalog API, routing and placement.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings (TOML)")
    parser.add_argument("--check-config", action="store_true", help="check settings and secret files, then exit")
    options = parser.parse_args(arguments)
    try:
        config = load(options.config, os.environ)
        secrets = load_secrets(config)
    except ConfigError as error:
        print(f"copypool-coordinator: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIG
    if options.check_config:
        return 0
    records = logs.set_up(config.log_format, config.log_level, {"coordinator": config.name})
    # Requests leave no cycles behind: looking for some at every 700 allocations costs a twentieth of the CPU.
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])
    try:
        uvloop.run(_serve(config, secrets, records.counts))
    except ConfigError as error:
        print(f"copypool-coordinator: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIG
    except BaseExceptionGroup as failures:
        if failures.subgroup(CopypoolError) is None:
            raise
        logging.getLogger(__name__).critical("ended by a failure inside", exc_info=failures)
        return 1
    except OSError as error:
        logging.getLogger(__name__).error("cannot start: %s", error)
        return 1
    return 0


async def _serve(config: Config, secrets: Secrets, log_records: Mapping[str, int]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Coordinator(config, secrets, log_records).run(stop)


if __name__ == "__main__":
    sys.exit(main())
