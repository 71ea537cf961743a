"""The fault matrix: one fault at a time under a fleet that works, judged by what became of its tasks.

Run it with `make faults`, or `python -m tests.faults --help`.
"""
