"""The command `warren`: one module for each group of commands."""
