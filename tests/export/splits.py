"""Loads the splits of a checkout with datasets, pandas and pyarrow, and compares every row with the JSONL. See splits.sh.

    python tests/export/splits.py FOLDER

FOLDER is what `mla-run checkout select FOLDER` makes. Checks, for each of the three splits:
 1. `load_dataset(FOLDER/dataset, SPLIT)` follows the card and finds as many rows as the JSONL, with the columns below;
 2. without a name it loads `calib_swa_golden`, as the card says, and the card names these three splits and no other;
 3. every value of every row is that of `FOLDER/SPLIT/split.jsonl`; `marks` is JSON text there, figures that were not asked for are absent;
 4. pandas and pyarrow read the Parquet file alone to the same rows;
 5. the JSONL beside the Parquet has the same texts in the same order.
"""

import json
import pathlib
import sys
import tempfile

import pandas
import pyarrow.parquet
from datasets import disable_progress_bars, get_dataset_config_names, load_dataset

SPLITS = ["calib_swa_golden", "calib_full_golden", "calib_mixed_golden"]
COLUMNS = {
    "id": "string", "text": "string", "source": "string", "licence": "string", "n_tokens": "int64", "bucket": "string", "cluster": "int32",
    "reason": "string", "rank": "int32", "score": "int64", "margin": "int64", "marks": "string", "split": "string", "density": "int64",
    "recalls": "int32", "recall_typical": "int32", "recall_longest": "int32",
    "context_gain": "int64", "context_gain_error": "int64", "special_tokens": "bool",
}  # fmt: skip
OPTIONAL = ["density", "context_gain", "context_gain_error"]


def expect(what: str, ok: bool, detail: object = "") -> bool:
    print(f"{'ok  ' if ok else 'FAIL'} {what}{'' if ok else f': {detail}'}")
    return ok


def jsonl(path: pathlib.Path) -> list[dict]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def whole(row: dict) -> dict:
    """A row of the JSONL with every column that Parquet has."""
    return {**dict.fromkeys(OPTIONAL), "special_tokens": False, **row, "marks": row.get("marks", [])}


def plain(row: dict) -> dict:
    """A row of Parquet as JSON has it."""
    # pandas has no integer that may be absent and gives a float that may be NaN.
    optional = {name: None if row[name] is None or row[name] != row[name] else int(row[name]) for name in OPTIONAL}
    return {**row, **optional, "marks": json.loads(row["marks"])}


def difference(found: list[dict], wanted: list[dict]) -> str:
    """Where rows differ first; empty where they do not."""
    if len(found) != len(wanted):
        return f"{len(found)} rows, {len(wanted)} in the JSONL"
    for i, (a, b) in enumerate(zip(found, wanted)):
        if a.keys() != b.keys():
            return f"row {i}: columns {sorted(a.keys() ^ b.keys())} are in one only"
        for key in a:
            if a[key] != b[key]:
                return f"row {i}, `{key}`: {a[key]!r:.80}, {b[key]!r:.80} in the JSONL"
    return ""


def check(folder: pathlib.Path, split: str, cache: str) -> bool:
    dataset = folder / "dataset"
    wanted = [whole(row) for row in jsonl(folder / split / "split.jsonl")]
    loaded = load_dataset(str(dataset), split, cache_dir=cache)
    rows = loaded["train"]
    ok = expect(f"{split}: one table of {len(wanted)} rows", list(loaded) == ["train"] and len(rows) == len(wanted), loaded)
    types = {name: feature.dtype for name, feature in rows.features.items()}
    ok &= expect(f"{split}: columns and their types", types == COLUMNS, types)
    where = difference([plain(row) for row in rows], wanted)
    ok &= expect(f"{split}: datasets has the rows of the JSONL", not where, where)
    (path,) = (dataset / "data").glob(f"{split}-*.parquet")
    for name, read in [
        ("pandas", lambda: pandas.read_parquet(path).astype(object).to_dict("records")),
        ("pyarrow", lambda: pyarrow.parquet.read_table(path).to_pylist()),
    ]:
        where = difference([plain(row) for row in read()], wanted)
        ok &= expect(f"{split}: {name} has the rows of the JSONL", not where, where)
    texts = [row["text"] for row in jsonl(dataset / f"{split}.jsonl")]
    return ok & expect(f"{split}: the JSONL beside it has the same texts", texts == [row["text"] for row in wanted])


def main(folder: pathlib.Path) -> bool:
    disable_progress_bars()
    dataset = str(folder / "dataset")
    names = get_dataset_config_names(dataset)
    ok = expect("the card names the three splits", sorted(names) == sorted(SPLITS), names)
    with tempfile.TemporaryDirectory() as cache:
        first = load_dataset(dataset, cache_dir=cache)["train"]
        ok &= expect(f"without a name it is {SPLITS[0]}", set(first["split"]) == {SPLITS[0]}, set(first["split"]))
        for split in SPLITS:
            ok &= check(folder, split, cache)
    return ok


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(0 if main(pathlib.Path(sys.argv[1])) else 1)
