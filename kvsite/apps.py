"""The Django app of the top layer. Its commands replace Django's of the same name."""

from django.apps import AppConfig


class KvsiteConfig(AppConfig):
    """Must follow ``auth``, whose signal receiver it disconnects, and precede ``staticfiles``, whose ``runserver`` it
    replaces."""

    name = "kvsite"
    label = "kvsite"

    def ready(self) -> None:
        """Register the system check, and disconnect signal receivers that would use a database."""
        import kvsite.checks  # noqa: F401, PLC0415  # registers the check
        from kvsite.dashboard.auth import disable_last_login, track_logins  # noqa: PLC0415  # need the app registry
        from kvsite.signal_pruning import disconnect_idle_receivers  # noqa: PLC0415

        disable_last_login()
        track_logins()
        disconnect_idle_receivers()
