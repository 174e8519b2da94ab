"""The tests of the image need root, podman, debootstrap and minutes. They run only if named: `make image` does that."""

from __future__ import annotations

# pytest ignores this list for files that its arguments name.
collect_ignore = ["test_image.py"]
