"""Whether this computer is the box it should be: each check reads something, judges it, and says what to type next.

`table.py` names all checks, in order. `computer.py`, `trials.py` and the programs that they run do the reading; judging
is pure and has a module for each noun. `runner doctor` runs `python -m runner.box.checks` and shows what it prints.
"""
