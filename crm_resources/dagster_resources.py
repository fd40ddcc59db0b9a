"""The platform's resources as Dagster hands them to assets: settings, and what is chosen by them.

Constructing a resource reads nothing; settings are read when an asset runs, so the code location loads with an empty
environment and every service down.
"""

from __future__ import annotations

import dagster as dg

from crm_resources.settings import Profile, Settings, load_settings
from crm_resources.stream_launcher import StreamLauncher, SupervisedStream


class SettingsResource(dg.ConfigurableResource["SettingsResource"]):
    """Gives assets the settings of the process that runs them."""

    def load(self) -> Settings:
        """Settings read now from the environment and the stack's files."""
        return load_settings()


class StreamLauncherResource(dg.ConfigurableResource["StreamLauncherResource"]):
    """Chooses how the stream is run: under the local supervisor, or (cluster profile) in Kubernetes."""

    def launcher(self, settings: Settings) -> StreamLauncher:
        """The launcher of the profile.

        Raises:
            dg.Failure: the profile has no launcher on this installation.
        """
        if settings.profile is Profile.LOCAL:
            return SupervisedStream(settings)
        raise dg.Failure(
            f"CRM_PROFILE={settings.profile} has no stream launcher here; set CRM_PROFILE=local, or deploy the cluster profile",
            allow_retries=False,
        )
