"""`python -m benchmarks [NAME [OPTIONS]]`: one benchmark by name, or those of quantization in turn."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = ("kernels", "decoding", "speed", "allocation", "memory", "surgery", "harness", "search", "publish")
BY_DEFAULT = ("kernels", "decoding", "speed", "allocation", "memory")


def main(arguments: list[str]) -> None:
    """Run what is asked for; a benchmark named gets the options that follow."""
    if arguments and arguments[0] not in BENCHMARKS:
        raise SystemExit(f"there is no benchmark {arguments[0]!r}; there are {', '.join(BENCHMARKS)}")
    for name in arguments[:1] or BY_DEFAULT:
        print(f"== {name}", flush=True)
        sys.argv = [f"benchmarks {name}", *arguments[1:]]
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
