"""Let `python -m lightning_neuroimp` do what `neuroimp` does."""

from lightning_neuroimp.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
