"""The `lightbox` command. `app` lists the commands and loads each one's module when it is called, not before."""

from lightbox.cli.app import main

__all__ = ["main"]
