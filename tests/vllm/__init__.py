"""The suite on real vLLM: a tiny model on the CPU, from `make vllm`."""
