"""The arguments and help texts of each subcommand, declared with Typer. Heavy imports are inside the functions."""
