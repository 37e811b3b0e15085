"""The ways in: RunPod's queue and plain HTTP."""
