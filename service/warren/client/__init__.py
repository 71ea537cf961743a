"""Acting on a fleet from outside: submit, await, cancel, pause, replay."""
