"""The `fedms` command. What is heavy is imported inside the commands, so that help is instant."""

from fedms.cli import models, reports, runs, sites
from fedms.cli.base import app, main

__all__ = ["app", "main", "models", "reports", "runs", "sites"]
