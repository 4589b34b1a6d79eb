"""``python -m ssm_metarl.cli``: the command line where the script is not on the path."""

import sys

from ssm_metarl.cli import main

if __name__ == "__main__":
    sys.exit(main())
