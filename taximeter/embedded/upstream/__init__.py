"""A simulated OpenAI-compatible model server: no model, but a tokenizer, a prefix cache and usage that are real."""
