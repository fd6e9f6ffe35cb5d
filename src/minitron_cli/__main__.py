"""`python -m minitron_cli` is the `minitron` command."""

from minitron_cli.startup import main

if __name__ == "__main__":
    main()
