"""Free and taken ports of the loopback interface."""

import socket


def is_taken(port: int) -> bool:
    """Whether something listens on that port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nobody listens on now. Another process may take it before the caller does; then the start fails loudly."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
