"""The documented benchmark: ``python benchmarks/cartpole_benchmark.py``, standard against hybrid.

The work is `benchmarks.cartpole_adaptation`; ``--help`` lists its flags.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # where the folder of this file is found by name

    from benchmarks.cartpole_adaptation import main

    sys.exit(main())
