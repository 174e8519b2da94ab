"""``python -m kvsite`` is the command ``causeway``."""

import sys

from kvsite.cli import main

if __name__ == "__main__":
    sys.exit(main())
