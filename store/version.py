"""The version of Causeway. Pure."""

from typing import Final

VERSION: Final = "0.1.0"
"""The same as in pyproject.toml and in the Dockerfile; a test compares them."""
