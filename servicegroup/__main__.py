"""`python -m servicegroup`."""

from servicegroup.cli import main

if __name__ == "__main__":
    main()
