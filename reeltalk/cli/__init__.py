"""The command line: one command a step, which reads folders and writes one."""

from reeltalk.cli import inspect, lists, steps
from reeltalk.cli.app import app

__all__ = ["app", "inspect", "lists", "main", "steps"]


def main() -> None:
    """Run the command line on the process's arguments."""
    app()
