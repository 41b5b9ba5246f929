"""What training raises besides the runtime's own errors; both end as `error: …`, exit code 2."""

from sfn_rt.exceptions import SfnError


class ConfigError(SfnError):
    """A setting does not exist or cannot have this value."""


class RunError(SfnError):
    """A run folder cannot be used, or must not be written."""


class DeviceError(SfnError):
    """The device, or the number of them, cannot do what was asked."""
