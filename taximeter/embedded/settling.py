"""Waits until every event of the stack's own producers is in the log, and all that the log holds is in the warehouse."""

import json
import time
import urllib.error
import urllib.request

from taximeter.embedded.stack import Stack, StackError
from taximeter.reconcile.log_ends import log_ends
from taximeter_sql import connect

METERED_SECONDS_MAX = 180.0
PRODUCERS = ("gateway", "ingest")


def wait_until_metered(stack: Stack, seconds_max: float = METERED_SECONDS_MAX) -> None:
    """Wait until no producer holds an event back and the warehouse holds every message of the log.

    Raises StackError when that takes too long.
    """
    client = connect(stack.addresses.clickhouse_url)
    statement = "SELECT partition, max(offset) + 1 FROM usage_log WHERE log_id = {log_id:String} GROUP BY partition"
    deadline = time.monotonic() + seconds_max
    try:
        while True:
            # In this order: what leaves a spool after this look is below an end that is read later.
            held_back = {name: waiting for name in PRODUCERS if (waiting := _held_back(stack.addresses.urls[name]))}
            ends = log_ends(stack.addresses.kafka)
            parameters = {"log_id": stack.log_id}
            reached = {int(row[0]): int(row[1]) for row in client.query(statement, parameters=parameters).result_rows}
            behind = {
                number: end - reached.get(number, 0) for number, end in ends.items() if end > reached.get(number, 0)
            }
            if not behind and not held_back:
                return
            if time.monotonic() > deadline:
                raise StackError(
                    f"after {seconds_max:.0f} s the meter is still behind (partition: messages): {behind}; "
                    f"not in the log yet: {held_back}"
                )
            stack.supervise()
            time.sleep(0.2)
    finally:
        client.close()


def _held_back(url: str) -> str:
    """What a producer has not delivered to the broker yet, in words; empty when nothing."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as response:
            page = json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return f"it answers {error.code}"
    except OSError as error:
        return f"it does not answer: {error}"
    unsafe, spooled = int(page["unsafe_events"]), int(page["spool_bytes"])
    return f"{unsafe} events under way, {spooled} bytes in the spool" if unsafe or spooled else ""
