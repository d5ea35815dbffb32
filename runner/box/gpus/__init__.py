"""The GPUs of the box: read by a process of its own, `python -m runner.box.gpus`; known and given out by the daemon."""
