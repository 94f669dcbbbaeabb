"""`python -m vitsee` is `vitsee`."""

from vitsee.cli import main

main()
