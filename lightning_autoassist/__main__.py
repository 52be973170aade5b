"""``python -m lightning_autoassist`` is the same as ``autoassist``."""

import sys

from lightning_autoassist.cli import main

if __name__ == "__main__":
    sys.exit(main())
