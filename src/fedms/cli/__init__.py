"""The `fedms` command. What is heavy is imported inside the commands, so that help is instant."""

from fedms.cli import models, runs, serving, sites
from fedms.cli.base import app, main

__all__ = ["app", "main", "models", "runs", "serving", "sites"]
