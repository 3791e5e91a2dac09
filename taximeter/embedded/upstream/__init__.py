"""A simulated OpenAI-compatible model server with a real prefix cache: for the embedded stack, demos, replays and tests."""
