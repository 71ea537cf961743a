"""The settings, and the addresses in them."""

from warren.settings.addresses import without_password
from warren.settings.settings import (
    KIB,
    MIB,
    DemoSettings,
    Settings,
    environment_of_a_command,
    inherited_environment,
    state_folder,
    variable,
)

__all__ = [
    "KIB",
    "MIB",
    "DemoSettings",
    "Settings",
    "environment_of_a_command",
    "inherited_environment",
    "state_folder",
    "variable",
    "without_password",
]
