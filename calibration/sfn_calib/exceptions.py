"""What calibration raises beside the runtime's errors; each ends with exit code 2.

SfnError
├── CalibrationError   the clips, their ranges or the data set cannot be used
├── ConversionError    a graph cannot be written in a lower precision
└── GateError          a lower precision does not hold its budget
"""

from sfn_rt.exceptions import SfnError


class CalibrationError(SfnError):
    """The clips, the ranges measured on them, or the data set cannot be used."""


class ConversionError(SfnError):
    """A graph cannot be written in a lower precision."""


class GateError(SfnError):
    """A lower precision does not hold its budget; nothing is packed."""
