"""`python -m warren.cli` is the command `warren`."""

from warren.cli.main import main

main()
