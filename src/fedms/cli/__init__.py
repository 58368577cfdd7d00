"""The `fedms` command. What is heavy is imported inside the commands, so that help is instant."""

from fedms.cli import looking, models, reports, runs, serving, sites
from fedms.cli.base import app, main

__all__ = ["app", "looking", "main", "models", "reports", "runs", "serving", "sites"]
