"""What the runtime raises. Every message names the place, what was found, and the way out.

SfnError            exit code 2 on the command line
├── BundleError     the bundle on disk cannot be used
├── BackendError    the inference library or device is missing
├── InputError      an array does not match what a part declares
├── VideoError      the video cannot be decoded
├── DataError       a data folder, its labels or its masks cannot be used
└── OutputError     results cannot be written
"""


class SfnError(Exception):
    """Base of everything a user can cause and repair."""


class BundleError(SfnError):
    """The bundle on disk cannot be used."""


class BackendError(SfnError):
    """The inference library or device is missing."""


class InputError(SfnError):
    """An array does not match what a part declares."""


class VideoError(SfnError):
    """The video cannot be decoded."""


class DataError(SfnError):
    """A data folder, its labels or its masks cannot be used."""


class OutputError(SfnError):
    """Results cannot be written."""
