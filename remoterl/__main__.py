"""`python -m remoterl` is `remoterl`."""

from remoterl.cli import main

if __name__ == "__main__":
    main()
