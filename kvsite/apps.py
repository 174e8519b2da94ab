"""The top floor as a Django app: its commands come before Django's own of the same name."""

from django.apps import AppConfig


class KvsiteConfig(AppConfig):
    """Stands after ``auth``, whose signal it undoes, and before ``staticfiles``, whose ``runserver`` it replaces."""

    name = "kvsite"
    label = "kvsite"

    def ready(self) -> None:
        """Undo what would ask a database."""
        import kvsite.checks  # noqa: F401, PLC0415  # registers them
        from kvsite.dashboard.auth import disable_last_login  # noqa: PLC0415  # needs the app registry
        from kvsite.signal_pruning import disconnect_idle_receivers  # noqa: PLC0415

        disable_last_login()
        disconnect_idle_receivers()
