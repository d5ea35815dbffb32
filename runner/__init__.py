"""gpubox: a computer with GPUs at home as your own small training cloud."""

__version__ = "0.1.0"
API_LEVEL = 1
