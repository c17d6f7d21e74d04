"""Every switch of every family, on and off, against transformers in float32 and float64."""

from __future__ import annotations

from pathlib import Path

import hf
import numpy as np
import pytest
from slow import slow

from convert.families import HF_FAMILIES
from convert.verify.families import SETTINGS, Row, compare_family, table_lines
from convert.verify.reference import write_random_model

ALL = {**hf.CONFIGS, **hf.MORE_CONFIGS}


def test_the_matrix_has_at_least_60_configurations_and_every_family() -> None:
    assert len(ALL) == len(hf.CONFIGS) + len(hf.MORE_CONFIGS) >= 60
    assert SETTINGS.keys() == HF_FAMILIES.keys() == hf.MODELS.keys()


@slow  # compiles two programs for each; set TASKVEC_SLOW_TESTS=1
@pytest.mark.parametrize("name", ALL)
def test_every_token_in_every_layer_equals_transformers(name: str, tmp_path: Path) -> None:
    hf.save(hf.random_model(ALL[name]()), tmp_path)
    for row in compare_family(name, tmp_path, ("float32", "float64")):
        allowed = 1e-10 if row.dtype == "float64" else 1e-4
        assert row.residual <= allowed, row
        assert row.logits <= allowed, row


def test_a_row_of_the_published_table_is_made_from_transformers_own_model(tmp_path: Path) -> None:
    write_random_model(SETTINGS["gemma3_text"], "gemma3_text", tmp_path)
    (row,) = compare_family("gemma3_text", tmp_path, ("float64",))
    assert row.residual <= 1e-10
    assert row.logits <= 1e-10
    assert row.top1 == 1
    assert np.isfinite(row.residual)


def test_the_published_table_has_a_line_a_family_and_a_column_a_precision() -> None:
    rows = [
        Row(kind, dtype, error, 2 * error, 0.5)
        for kind, error in (("llama", 1e-6), ("gpt2", 3e-6))
        for dtype in ("float32", "float64", "bfloat16")
    ]
    cell = " | ".join(["1.0e-06, 2.0e-06, 50.0%"] * 3)
    assert list(table_lines(iter(rows))) == [
        "| family | float32 | float64 | bfloat16 |",
        "|---|---|---|---|",
        f"| llama | {cell} |",
        "| gpt2 | " + cell.replace("1.0", "3.0").replace("2.0", "6.0") + " |",
    ]
