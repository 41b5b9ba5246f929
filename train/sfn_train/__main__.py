"""`python -m sfn_train`."""

from sfn_train.cli import app

app()
