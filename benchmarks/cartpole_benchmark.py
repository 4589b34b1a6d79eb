"""The documented benchmark: ``python benchmarks/cartpole_benchmark.py``, standard against hybrid.

The work is `ssm_metarl.benchmarks.cartpole_adaptation`; ``--help`` lists its flags.
"""

import sys

from ssm_metarl.benchmarks.cartpole_adaptation import main

if __name__ == "__main__":
    sys.exit(main())
