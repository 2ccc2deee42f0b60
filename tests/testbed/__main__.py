"""Run servers to play with, and a site on them: ``python -m tests.testbed --help``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # where the tests find this package
    from testbed.playing import main

    main()
