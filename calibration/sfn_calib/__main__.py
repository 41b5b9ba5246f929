"""`python -m sfn_calib`."""

from sfn_calib.cli import app

app()
