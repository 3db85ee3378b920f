"""``python -m reeltalk``: the command line."""

from reeltalk.cli import main

if __name__ == "__main__":
    main()
