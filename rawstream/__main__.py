"""``python -m rawstream``."""

from rawstream.cli import main

if __name__ == "__main__":
    main()
