"""Run the command line: ``python -m edgecore``."""

from edgecore.cli import main

if __name__ == "__main__":
    main()
