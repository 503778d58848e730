"""`python -m llmcore.cli` is the `llmcore` command."""

from llmcore.cli import main

if __name__ == "__main__":
    main()
