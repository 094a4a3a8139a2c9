"""The command `flowlab`, run as `python -m flowlab`."""

from flowlab.cli import main

main()
