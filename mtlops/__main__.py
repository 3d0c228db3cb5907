"""`python -m mtlops` is the command `mtlops`."""

from mtlops.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
