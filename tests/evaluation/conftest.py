import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SCHEMA = pa.schema([
    ("filename", pa.string()), ("label", pa.int8()), ("score", pa.float32()), ("p_ai", pa.float32()), ("error", pa.string()),
    ("message", pa.string()), ("bytes", pa.int64()), ("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()),
    ("model", pa.string()),
])  # fmt: skip


def row(filename, p_ai=None, *, error=None, **more):
    """One row of predictions.parquet; without a probability it is a failed one."""
    if p_ai is None:
        return {"filename": filename, "error": error or "truncated", "message": "cut short", **more}
    label = 0 if p_ai >= 0.5 else 1
    return {"filename": filename, "label": label, "score": max(p_ai, 1 - p_ai), "p_ai": p_ai, **more}


@pytest.fixture
def save(tmp_path):
    """Write rows as predictions.parquet into a folder; its path."""

    def write(rows, name="predictions"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "predictions.parquet")
        return str(folder)

    return write


@pytest.fixture
def write_csv(tmp_path):
    """Write text as a CSV file, byte for byte; its path."""

    def write(text, name="truth.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


@pytest.fixture
def corpus(save, write_csv):
    """120 scored pictures of two sources and a truth CSV for them: (folder, csv)."""
    rng = np.random.default_rng(7)
    rows, lines = [], ["filename,label,source,generator"]
    for i in range(120):
        is_ai = i % 2 == 0
        p_ai = float(np.clip(rng.normal(0.75 if is_ai else 0.25, 0.2), 0.001, 0.999))
        size = int(rng.integers(100, 3000))
        kind = {"bytes": int(rng.integers(1000, 9000)), "width": size, "height": 90, "format": "JPEG" if i % 3 else "PNG"}
        rows.append(row(f"./art/{i:03d}.jpg", p_ai, model="abc", **kind))
        lines.append(f"{i:03d}.jpg,{'AI' if is_ai else 'Real'},{'north' if i < 60 else 'south'},{'gan' if is_ai else ''}")
    return save(rows), write_csv("\n".join(lines) + "\n")
