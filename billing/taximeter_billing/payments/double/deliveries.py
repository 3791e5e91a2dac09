"""Delivers the double's events to webhook endpoints, signed as Stripe signs them, until each was answered with 2xx."""

import hmac
import json
import threading
import time
import urllib.request
from hashlib import sha256
from urllib.error import URLError

from taximeter_billing.payments.double.store import Store

TRIES_MAX = 6
TIMEOUT_SECONDS = 10.0
WAIT_SECONDS = 0.2


def signature(body: bytes, secret: str, timestamp: int) -> str:
    """The header Stripe-Signature: an HMAC-SHA256 over the timestamp and the raw body."""
    signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, sha256).hexdigest()
    return f"t={timestamp},v1={signed}"


class Deliveries:
    """A thread that empties the list of deliveries, one after the other, oldest first; it starts with the first one."""

    def __init__(self, store: Store, lock: threading.Condition) -> None:
        self._store = store
        self._lock = lock
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def wake(self) -> None:
        """There may be something to deliver. Called with the lock held."""
        if self._store.waiting_deliveries() and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="stripe-double-webhooks", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Deliver nothing more; a delivery under way comes to its end. Called without the lock."""
        self._stopping.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                waiting = self._store.waiting_deliveries()
                if not waiting:
                    self._thread = None
                    return
                event_id, endpoint_id, tries = waiting[0]
                event = self._store.get(event_id, "event")
                endpoint = self._store.get(endpoint_id, "webhook_endpoint")
            done = event is not None and endpoint is not None
            if event is not None and endpoint is not None:
                done = _delivered(endpoint["url"], json.dumps(event).encode(), endpoint["secret"])
            with self._lock:
                given_up = tries + 1 >= TRIES_MAX
                self._store.note_delivery(
                    event_id, endpoint_id, "done" if done else "failed" if given_up else "waiting"
                )
            if not done:
                self._stopping.wait(WAIT_SECONDS * 2**tries)


def _delivered(url: str, body: bytes, secret: str) -> bool:
    headers = {"Content-Type": "application/json", "Stripe-Signature": signature(body, secret, int(time.time()))}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return 200 <= int(answer.status) < 300
    except (URLError, OSError):
        return False
