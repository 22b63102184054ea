"""``python -m medvisionllama``: the command line, for ``torchrun -m`` and where its script is not on the path."""

from __future__ import annotations

import sys

from medvisionllama.cli import main

if __name__ == "__main__":
    sys.exit(main())
