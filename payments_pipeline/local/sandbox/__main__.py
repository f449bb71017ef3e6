"""`python -m payments_pipeline.local.sandbox`: the sandbox processor's process."""

from __future__ import annotations

import argparse
import logging
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web

from payments_pipeline.local.sandbox.books import Books
from payments_pipeline.local.sandbox.server import Server
from payments_pipeline.local.sandbox.tokens import WORDS

_HOST = "127.0.0.1"


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="payments_pipeline.local.sandbox", description="Sandbox payment processor.")
    parser.add_argument("--tokens", action="store_true", help="print the test tokens and exit")
    parser.add_argument("--db", type=Path, help="SQLite file with its books")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1")
    parser.add_argument("--api-key-file", type=Path, help="file that holds the API key")
    parser.add_argument("--key-lifetime-s", type=float, default=86_400, help="how long an idempotency key lives")
    options = parser.parse_args()
    if options.tokens:
        sys.stdout.write("".join(f"{token}\n    {words}\n" for token, words in WORDS.items()))
        return 0
    if options.db is None or options.port is None or options.api_key_file is None:
        parser.error("--db, --port and --api-key-file are needed")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    books = Books(options.db, timedelta(seconds=options.key_lifetime_s), lambda: datetime.now(UTC))
    server = Server(books, options.api_key_file.read_text("utf-8").strip())
    web.run_app(
        server.application(),
        host=_HOST,
        port=options.port,
        print=lambda *_: sys.stdout.write(f"sandbox ready on http://{_HOST}:{options.port}\n"),
        shutdown_timeout=0.5,
        access_log=None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
