"""The error of this package."""


class NetnsError(RuntimeError):
    """Network namespaces cannot be made or changed. The text says what failed or what is missing."""
