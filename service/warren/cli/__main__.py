"""`python -m warren.cli` is the command `warren`."""

from warren.cli.main import main

if __name__ == "__main__":
    main()
