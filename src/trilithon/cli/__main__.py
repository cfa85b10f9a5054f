"""`python -m trilithon.cli`: the program, where its script is not on the path."""

from trilithon.cli.main import entry

if __name__ == "__main__":
    entry()
