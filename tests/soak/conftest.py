"""The worker's process with tiny random weights, as the worker's own tests start it."""

from tests.worker.conftest import process_environ, start_worker, tiny_weights

__all__ = ["process_environ", "start_worker", "tiny_weights"]
