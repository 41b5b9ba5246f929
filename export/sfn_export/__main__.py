"""`python -m sfn_export`."""

from sfn_export.cli import app

app()
