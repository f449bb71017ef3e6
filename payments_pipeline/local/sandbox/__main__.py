"""`python -m payments_pipeline.local.sandbox`: the sandbox processor's process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from aiohttp import web

from payments_pipeline.local.sandbox.database import WrongFileError
from payments_pipeline.local.sandbox.payments import KEY_LIFETIME, Desk
from payments_pipeline.local.sandbox.reports import PAGE_ENTRIES, Clock
from payments_pipeline.local.sandbox.server import Server
from payments_pipeline.local.sandbox.tokens import WORDS

HOST = "127.0.0.1"
#: What is under way when it is told to stop has this long to end, and as long again to take its end in.
_LAST_ANSWERS_S = 0.2


def main() -> int:
    """Serve until SIGTERM or SIGINT; one line on standard output says that it answers."""
    parser = argparse.ArgumentParser(prog="python -m payments_pipeline.local.sandbox", description=__doc__)
    parser.add_argument("--tokens", action="store_true", help="print the test tokens and exit")
    parser.add_argument("--db", type=Path, help="SQLite file of its books; made where there is none")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--api-key-file", type=Path, help="file that holds the API key")
    parser.add_argument(
        "--key-lifetime-s",
        type=float,
        default=KEY_LIFETIME.total_seconds(),
        help="how long an idempotency key lives (default: %(default)s)",
    )
    parser.add_argument(
        "--page-entries",
        type=int,
        choices=range(1, PAGE_ENTRIES + 1),
        metavar="N",
        default=PAGE_ENTRIES,
        help="entries on a page of a report, at most (default: %(default)s)",
    )
    options = parser.parse_args()
    if options.tokens:
        sys.stdout.write("".join(f"{token}\n    {words}\n" for token, words in WORDS.items()))
        return 0
    if options.db is None or options.port is None or options.api_key_file is None:
        parser.error("--db, --port and --api-key-file are needed")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # The books hold tokens: for their owner alone.
    os.umask(0o077)
    try:
        api_key = options.api_key_file.read_text("ascii").strip()
        if not api_key:
            parser.error(f"{options.api_key_file} holds no API key")
        desk = Desk(timedelta(seconds=options.key_lifetime_s), Clock())
        asyncio.run(_serve(Server(options.db, api_key, desk, options.page_entries), options.port))
    except (OSError, UnicodeDecodeError, WrongFileError) as error:
        sys.stderr.write(f"the sandbox cannot run: {error}\n")
        return 1
    return 0


async def _serve(server: Server, port: int) -> None:
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=_LAST_ANSWERS_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port, backlog=1024).start()
        sys.stdout.write(f"sandbox ready on http://{HOST}:{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
