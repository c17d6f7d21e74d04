"""Fails unless two layer_sweep.json hold the same prompts, predictions, scores and layers.

python .ci/same.py A.json B.json

Numbers with a point may differ by 1e-3: other versions of XLA add in another order, and a random
vector turns with the last bit of the covariance it is drawn from.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any


def differences(a: Any, b: Any, where: str) -> list[str]:
    """Where two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{where}/{i}")]
    if isinstance(a, float) and isinstance(b, float):
        return [] if math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) else [f"{where}: {a}, {b}"]
    return [] if a == b else [f"{where}: {a!r}, {b!r}"]


tasks = [json.loads(Path(path).read_text())["tasks"] for path in sys.argv[1:]]
found = differences(tasks[0], tasks[1], "tasks")
print("\n".join(found[:20]) or f"{sys.argv[2]}: the same as {sys.argv[1]}")
sys.exit(bool(found))
