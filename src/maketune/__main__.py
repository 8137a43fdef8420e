"""Run the container side: python -m maketune VERB."""

from maketune.cli import main

main()
