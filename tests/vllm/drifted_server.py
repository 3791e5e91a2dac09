"""vLLM's server, but one of the methods that the plugin holds on to takes something else: a release that has moved on.

`python drifted_server.py OPTION...`, in vLLM's environment.
"""

import runpy

import vllm.v1.engine.output_processor as processors

_propagate_error = processors.OutputProcessor.propagate_error


def propagate_error(self: processors.OutputProcessor, error: Exception) -> None:
    """Does what it always did, under another name for its argument."""
    _propagate_error(self, error)


if __name__ == "__main__":
    processors.OutputProcessor.propagate_error = propagate_error
    runpy.run_module("vllm.entrypoints.launchers.api_server.entry", run_name="__main__", alter_sys=True)
