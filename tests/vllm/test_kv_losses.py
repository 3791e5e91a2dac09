"""KV events that are lost on their way, from vLLM's own publisher over real sockets."""

import pytest

from tests.vllm.programs import said_by

pytestmark = pytest.mark.vllm


def test_lost_messages_are_had_again_or_what_they_told_of_is_inferred() -> None:
    """A gap is filled from vLLM's memory; where that is too short, the request then under way is inferred, the next is exact."""
    assert said_by("kv_losses.py") == {"enough": ["engine", "engine"], "too few": ["inferred", "engine"]}
