"""`python -m vitsee` is `vitsee`."""

from vitsee.cli import main

if __name__ == "__main__":
    main()
