"""`python -m medseqft_kit`."""

from medseqft_kit.cli import main

if __name__ == "__main__":
    main()
