"""`python -m proxy`: the same as the command `pullthrough`."""

from proxy.cli import main

if __name__ == "__main__":
    main()
