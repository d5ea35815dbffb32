"""A believable day on four GPUs, for who has none: `runner serve --demo`.

The daemon, the scheduler, the collector and the API are the real ones. Made up are the people (`people.py`), the
processes (`stage.py`) and the hardware: `physics.py` behind a fake libnvidia-ml, told by `script.py` what to say.
"""
