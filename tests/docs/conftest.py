"""Makes the modules of this folder importable."""

from __future__ import annotations

import sys
from pathlib import Path

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))
