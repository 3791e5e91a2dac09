"""`python -m taximeter.embedded.clickhouse_face --path DIR --port N`: serve a chDB directory until SIGTERM."""

import argparse
import os
import signal
import sys
from pathlib import Path

import uvicorn

STOP_SECONDS_MAX = 10
HEAD_BYTES_MAX = 4 << 20
KEEP_ALIVE_SECONDS = 3600


def main() -> None:
    """Read the command line and serve. TAXIMETER_CLICKHOUSE_PASSWORD, where set, is asked of every client."""
    parser = argparse.ArgumentParser(prog="clickhouse_face", description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="the directory that holds the data")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--user", default="default", help="the user that clients name where a password is set")
    options = parser.parse_args()
    # The engine takes its time zone from here when it starts; times then read the same on every machine.
    os.environ["TZ"] = "UTC"
    from taximeter.embedded.clickhouse_face.engine import Engine
    from taximeter.embedded.clickhouse_face.failures import FaceError
    from taximeter.embedded.clickhouse_face.requests import Credentials
    from taximeter.embedded.clickhouse_face.web import Face

    try:
        engine = Engine(options.path)
    except FaceError as error:
        sys.exit(f"{options.path} cannot be opened; another process may have it: {error}")
    # uvicorn stops at SIGTERM and then sends it on; without this the process would end before the engine has closed.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    face = Face(engine, Credentials(options.user, os.environ.get("TAXIMETER_CLICKHOUSE_PASSWORD", "")))
    try:
        uvicorn.run(
            face.app(),
            host=options.host,
            port=options.port,
            http="h11",
            log_level="warning",
            # Parameters travel in the address, so the head of a request can be long.
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            # Clients keep connections; one that is closed under a client's hands could fail its next insert.
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS_MAX,
        )
    finally:
        face.close()
        engine.close()


if __name__ == "__main__":
    main()
