"""The command line: one command a step, which reads folders and writes one; and commands that run many steps."""

from reeltalk.cli import experiments, inspect, lists, steps
from reeltalk.cli.app import app

__all__ = ["app", "experiments", "inspect", "lists", "main", "steps"]


def main() -> None:
    """Run the command line on the process's arguments."""
    app()
