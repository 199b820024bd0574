"""The older name of a resume: `CHECKPOINT_PATH=… python3 training_resume.py`."""

from __future__ import annotations

import sys

from training import main

if __name__ == "__main__":
    sys.exit(main(must_resume=True))
