"""`python -m trilithon` is `trilithon`."""

from trilithon.cli.main import entry

if __name__ == "__main__":
    entry()
