"""`copypool-coordinator --config FILE [--check-config | --print-config]`: run one until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Mapping, Sequence

import uvloop

from copypool.protocol.errors import CopypoolError
from copypool.serving.commandline import refuse, settings_of
from copypool.serving.encryption import load_chain
from copypool.serving.settings import ConfigError
from copypool.telemetry import logs, spans
from copypool.tls import Chain
from copypool_coordinator.config import Config, Secrets, find_troubles, load, load_secrets
from copypool_coordinator.process import Coordinator

PROGRAM = "copypool-coordinator"
GC_ALLOCATIONS = 50_000  #: objects made and kept between two runs of the collector of cycles


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a coordinator until SIGTERM or SIGINT; 2 for settings that cannot be used, 1 for a failure."""
    config = settings_of(PROGRAM, "Catalog API, routing and placement of Copypool.", arguments, load, find_troubles)
    try:
        secrets = load_secrets(config)
        tls = load_chain(config.tls)
    except ConfigError as error:
        refuse(PROGRAM, [str(error)])
    records = logs.set_up(config.log_format, config.log_level, {"coordinator": config.name})
    if found := spans.trouble(config.trace_export):
        refuse(PROGRAM, [found])
    end_export = spans.export(PROGRAM, config.name, config.trace_ratio) if config.trace_export == "otlp" else None
    # Requests leave no cycles behind: looking for some at every 700 allocations costs a twentieth of the CPU.
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])
    try:
        uvloop.run(_serve(config, secrets, tls, records.counts))
    except ConfigError as error:
        refuse(PROGRAM, [str(error)])
    except BaseExceptionGroup as failures:
        if failures.subgroup((CopypoolError, OSError)) is None:
            raise
        logging.getLogger(__name__).critical("ended by a failure inside", exc_info=failures)
        return 1
    except OSError as error:
        logging.getLogger(__name__).error("cannot start: %s", error)
        return 1
    finally:
        if end_export is not None:
            end_export()
    return 0


async def _serve(config: Config, secrets: Secrets, tls: Chain | None, log_records: Mapping[str, int]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Coordinator(config, secrets, tls, log_records).run(stop)


if __name__ == "__main__":
    sys.exit(main())
