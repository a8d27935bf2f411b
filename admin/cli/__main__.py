"""`python -m trivium.admin.cli`: the same as the console script."""

from trivium.admin.cli import main

main(prog_name="trivium")
