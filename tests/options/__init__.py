"""Odd and hostile values of options and arguments: drawn from click's tree of commands, run on tiny inputs, and judged."""
