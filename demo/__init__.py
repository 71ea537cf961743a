"""A thousand real tasks through everything that goes wrong: `python -m demo`."""
