"""The `epigraph` command."""

import typer

app = typer.Typer()
