"""The documented entry point for training: ``python main.py --mode meta_rl|policy_gradient ...``.

The same as ``ssm-metarl train``.
"""

import sys

from ssm_metarl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
