"""python -m maketune."""

from maketune.cli import main

main()
