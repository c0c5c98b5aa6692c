"""`python -m envs.serve.health URL`: exit code 0 if the URL answers well. For containers, which
have no curl."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    url = arguments[0] if arguments else "http://127.0.0.1:8000/readyz"
    try:
        with urllib.request.urlopen(url, timeout=4) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
