"""`python -m longspan` is the command `longspan`."""

from longspan.cli.commands import main

if __name__ == "__main__":
    main()
