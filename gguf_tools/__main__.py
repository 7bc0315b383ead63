"""`python -m gguf_tools` is `tinyq`."""

from gguf_tools.cli import main

if __name__ == "__main__":
    main()
