"""Waits until the meter has written all that the log holds."""

import time

from taximeter.embedded.stack import Stack, StackError
from taximeter.reconcile.log_ends import log_ends
from taximeter_sql import connect

METERED_SECONDS_MAX = 180.0


def wait_until_metered(stack: Stack, seconds_max: float = METERED_SECONDS_MAX) -> None:
    """Wait until the warehouse holds every message of the log. Raises StackError when that takes too long."""
    client = connect(stack.addresses.clickhouse_url)
    statement = "SELECT partition, max(offset) + 1 FROM usage_log WHERE log_id = {log_id:String} GROUP BY partition"
    deadline = time.monotonic() + seconds_max
    try:
        while True:
            ends = log_ends(stack.addresses.kafka)
            parameters = {"log_id": stack.log_id}
            reached = {int(row[0]): int(row[1]) for row in client.query(statement, parameters=parameters).result_rows}
            behind = {
                number: end - reached.get(number, 0) for number, end in ends.items() if end > reached.get(number, 0)
            }
            if not behind:
                return
            if time.monotonic() > deadline:
                raise StackError(f"after {seconds_max:.0f} s the meter is still behind (partition: messages): {behind}")
            stack.supervise()
            time.sleep(0.2)
    finally:
        client.close()
