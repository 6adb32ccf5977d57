"""`python -m threefold`."""

from threefold.cli.main import entry

if __name__ == "__main__":
    entry()
