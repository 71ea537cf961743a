"""The client side of a fleet: submit, await, cancel, pause, replay."""
