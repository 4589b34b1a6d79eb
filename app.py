"""Open the web app: ``python app.py``, then http://localhost:7860. A Space starts here, too.

The app is `ssm_metarl.app`; ``ssm-metarl app`` is the same with flags.
"""

import sys

from ssm_metarl.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
