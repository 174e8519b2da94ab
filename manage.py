#!/usr/bin/env python
"""Causeway's command line in a checkout: ``python manage.py help`` lists the commands. Installed: ``causeway``."""

import sys

from kvsite.cli import main

if __name__ == "__main__":
    sys.exit(main())
