"""The configuration: pydantic models, read from YAML, checked whole, all mistakes at once."""

from proxy.settings.bases import check_url
from proxy.settings.changes import applicable, needs_restart
from proxy.settings.intercept import InterceptSettings
from proxy.settings.load import ConfigurationError, load_settings
from proxy.settings.models import (
    BACKGROUND,
    AdminSettings,
    ClusterLimitSettings,
    ClusterSettings,
    CredentialSettings,
    LimitSettings,
    ListenSettings,
    ManifestOverrides,
    ManifestSettings,
    MatchSettings,
    PluginSettings,
    Settings,
    TLSSettings,
    UpstreamSettings,
)
from proxy.settings.shared import SharedSettings
from proxy.settings.units import Address, parse_address

__all__ = [
    "BACKGROUND",
    "Address",
    "AdminSettings",
    "ClusterLimitSettings",
    "ClusterSettings",
    "ConfigurationError",
    "CredentialSettings",
    "InterceptSettings",
    "LimitSettings",
    "ListenSettings",
    "ManifestOverrides",
    "ManifestSettings",
    "MatchSettings",
    "PluginSettings",
    "Settings",
    "SharedSettings",
    "TLSSettings",
    "UpstreamSettings",
    "applicable",
    "check_url",
    "load_settings",
    "needs_restart",
    "parse_address",
]
