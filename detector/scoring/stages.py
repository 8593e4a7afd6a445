"""decode_block → score_block → commit_block: plain callables on Arrow tables, the same for both engines.

A listing's rows go in; one committed part and a one-row summary come out. Nothing here knows Ray.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detector import runs
from detector.images.decoding import Decoded, Decoder
from detector.images.found import clamp_ns
from detector.images.pixels import DecodeLimits
from detector.images.transforms import EvaluationTransform
from detector.labels import Label
from detector.models.checkpoint import Checkpoint
from detector.models.devices import DeviceSettings
from detector.models.predictor import BatchPredictor, ModelError, load_predictor
from detector.scoring.encoded import COLUMNS, JpegFinisher, resized
from detector.scoring.rows import FACTS, MODEL_FAILED, PARTS_SCHEMA, SUMMARY_SCHEMA, pixel_column, pixel_rows
from detector.storage import Store


@dataclass(frozen=True, kw_only=True)
class ScorePlan:
    """What every worker of one run needs to know."""

    store: Store
    run: str
    fingerprint: str
    checkpoint: Checkpoint
    settings: DeviceSettings
    limits: DecodeLimits
    decode: str = "full"

    def decoder(self) -> Decoder:
        """A decoder of its own for one worker."""
        scaled = self.checkpoint.transform.scaled_minimum if self.decode == "scaled" else None
        return Decoder(self.limits, at_least=scaled, leave_jpegs=self.decode == "gpu")

    def finisher(self) -> JpegFinisher | None:
        """What makes pixels of the JPEGs that the decoder leaves as they are, where it does."""
        return JpegFinisher(self.checkpoint.transform, self.limits) if self.decode == "gpu" else None


def decode_blocks(decoder: Decoder, transform: EvaluationTransform, files: pa.Table, *, rows: int) -> Iterator[pa.Table]:
    """Decode a listing's files and yield them ``rows`` at a time, resized to the model's input.

    The columns are the listing's identity (``filename``, ``listed_bytes``, ``listed_modified``), what the decoder found, and
    ``pixels``: fixed-size binary of 3·h·w bytes (uint8, channels first), null where the picture failed. Where the decoder
    leaves JPEGs as they are, the files stand in :data:`detector.scoring.encoded.COLUMNS`. Full-size pixels live only between
    two steps of this loop.
    """
    decoded = decoder.decode(files["path"].to_pylist())
    for start in range(0, files.num_rows, rows):
        block = files.slice(start, rows)
        yield _decoded_table(block, islice(decoded, block.num_rows), transform, leave_jpegs=decoder.leave_jpegs)


def _decoded_table(
    block: pa.Table, decoded: Iterator[Decoded], transform: EvaluationTransform, *, leave_jpegs: bool
) -> pa.Table:
    height, width = transform.input_size
    pixels = np.zeros((block.num_rows, 3 * height * width), dtype=np.uint8)
    found: dict[str, list[object]] = {name: [] for name, _ in FACTS}
    left: dict[str, list[object]] = {name: [] for name, _ in COLUMNS}
    listed = zip(block["bytes"].to_pylist(), block["modified"].cast(pa.int64()).to_pylist(), strict=True)
    for row, (picture, (listed_bytes, listed_modified)) in enumerate(zip(decoded, listed, strict=True)):
        outcome = resized(picture, transform)
        if isinstance(outcome, Decoded):
            picture = outcome  # noqa: PLW2901
        else:
            pixels[row] = outcome.reshape(-1)
        left["encoded"].append(None if picture.encoded is None else picture.encoded.tobytes())
        left["turn"].append(picture.turn)
        found["bytes"].append(listed_bytes if picture.num_bytes is None else picture.num_bytes)
        found["modified"].append(listed_modified if picture.modified_ns is None else clamp_ns(picture.modified_ns))
        for name in ("error", "message", "sha256", "width", "height", "format"):
            found[name].append(getattr(picture, name))
    good = np.array([error is None for error in found["error"]], dtype=bool)
    encoded = {name: pa.array(left[name], kind) for name, kind in COLUMNS} if leave_jpegs else {}
    return pa.table({
        "filename": block["filename"],
        "listed_bytes": block["bytes"],
        "listed_modified": block["modified"],
        **{name: pa.array(found[name], _storage(kind)).cast(kind) for name, kind in FACTS},
        "pixels": pixel_column(pixels, good),
        **encoded,
    })  # fmt: skip


def _storage(kind: pa.DataType) -> pa.DataType:
    """Nanoseconds come as plain integers: Python's datetime would cut them."""
    return pa.int64() if pa.types.is_timestamp(kind) else kind


def score_block(
    predictor: BatchPredictor, decoded: pa.Table, *, plan: ScorePlan, finisher: JpegFinisher | None = None
) -> pa.Table:
    """Score a decoded table of any length in the model's fixed batches; rows of PARTS_SCHEMA plus the listing's identity.

    ``finisher``: what makes pixels of the files in the table, if the decoder left any.
    """
    if finisher is not None:
        decoded = finisher(decoded)
    good = np.flatnonzero(decoded["error"].is_null().to_numpy())
    pixels = pixel_rows(decoded["pixels"]).reshape(-1, 3, *predictor.transform.input_size)
    p_ai = np.full(decoded.num_rows, np.nan, dtype=np.float32)
    failures: dict[int, str] = {}
    for chosen, outcome in predictor.stream(pixels, good):
        if isinstance(outcome, ModelError):
            failures.update({int(row): str(outcome) for row in chosen})
        else:
            p_ai[chosen] = outcome
    failures.update({int(r): "the model gave no finite number" for r in good if np.isnan(p_ai[r]) and int(r) not in failures})
    return _scored_table(decoded, p_ai, failures, plan)


def _scored_table(decoded: pa.Table, p_ai: np.ndarray, failures: dict[int, str], plan: ScorePlan) -> pa.Table:
    missing = np.isnan(p_ai)
    label = np.where(p_ai >= 0.5, Label.AI, Label.REAL).astype(np.int8)
    score = np.where(p_ai >= 0.5, p_ai, np.float32(1.0) - p_ai).astype(np.float32)
    columns: dict[str, object] = {name: decoded[name] for name in decoded.column_names if name != "pixels"}
    if failures:
        for name, text in (("error", dict.fromkeys(failures, MODEL_FAILED)), ("message", failures)):
            values = decoded[name].to_pylist()
            columns[name] = pa.array([text.get(row, value) for row, value in enumerate(values)], pa.string())
    count, now = decoded.num_rows, runs.now_utc()
    columns |= {
        "label": pa.array(label, mask=missing),
        "score": pa.array(score, mask=missing),
        "p_ai": pa.array(p_ai, mask=missing),
        "model": pa.repeat(plan.fingerprint, count),
        "run": pa.repeat(plan.run, count),
        "scored_at": pa.array([now] * count, pa.timestamp("us", "UTC")),
    }
    return pa.table(columns)


def part_name(fingerprint: str, rows: pa.Table) -> str:
    """Where a block is committed: a hash of its rows' identities, so that a retried block writes the same name."""
    keys = zip(rows["filename"].to_pylist(), rows["listed_bytes"].to_pylist(), _ticks(rows["listed_modified"]), strict=True)
    lines = (f"{len(name)}:{name}|{size}|{modified}\n" for name, size, modified in sorted(keys, key=itemgetter(0)))
    identity = hashlib.sha256((fingerprint + "".join(lines)).encode())
    return f"parts/{fingerprint}/{identity.hexdigest()[:32]}.parquet"


def _ticks(column: pa.ChunkedArray) -> list[int | None]:
    return column.cast(pa.int64()).to_pylist()


def commit_block(rows: pa.Table, *, plan: ScorePlan) -> pa.Table:
    """Write rows as one part, atomically; the one-row summary that the driver counts.

    Raises:
        OSError: the output cannot be written.
    """
    name = part_name(plan.fingerprint, rows)
    table = rows.select(PARTS_SCHEMA.names).cast(PARTS_SCHEMA)
    plan.store.write(name, lambda sink: pq.write_table(table, sink, compression="zstd"))
    failed = rows.num_rows - rows["error"].null_count
    return pa.table(
        {"part": [name], "rows": [rows.num_rows], "scored": [rows.num_rows - failed], "failed": [failed]}, schema=SUMMARY_SCHEMA
    )


class BlockScorer:
    """All three stages in one process, one model batch at a time: what a CPU worker of either engine runs."""

    def __init__(
        self,
        plan: ScorePlan,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_rows: Callable[[int], None] = lambda _rows: None,
    ) -> None:
        self._plan, self._should_stop, self._on_rows = plan, should_stop, on_rows
        self._predictor = load_predictor(plan.checkpoint, plan.settings)
        self._decoder, self._finisher = plan.decoder(), plan.finisher()

    def __call__(self, files: pa.Table) -> pa.Table:
        """Score and commit one block of the listing; when asked to stop, what is finished of it.

        Raises:
            OSError: the output cannot be written.
        """
        plan, done = self._plan, []
        for decoded in decode_blocks(self._decoder, plan.checkpoint.transform, files, rows=plan.settings.batch_size):
            done.append(score_block(self._predictor, decoded, plan=plan, finisher=self._finisher))
            self._on_rows(decoded.num_rows)
            if self._should_stop():
                break
        return commit_block(pa.concat_tables(done), plan=plan)

    def close(self) -> None:
        """End the decoders' child processes."""
        self._decoder.close()
        if self._finisher is not None:
            self._finisher.close()


def commit_failed(files: pa.Table, *, error: str, message: str, plan: ScorePlan) -> pa.Table:
    """Commit rows that could not be scored at all, with one error for each."""
    count = files.num_rows
    unknown = {name: pa.nulls(count, kind) for name, kind in FACTS}
    decoded = pa.table({
        "filename": files["filename"],
        "listed_bytes": files["bytes"],
        "listed_modified": files["modified"],
        **unknown,
        "bytes": files["bytes"],
        "modified": files["modified"],
        "error": pa.repeat(error, count),
        "message": pa.repeat(message, count),
    })  # fmt: skip
    return commit_block(_scored_table(decoded, np.full(count, np.nan, dtype=np.float32), {}, plan), plan=plan)


class BlockDecoder:
    """The first stage alone: what a CPU actor runs where the model is on another device."""

    def __init__(self, plan: ScorePlan) -> None:
        self._plan, self._decoder = plan, plan.decoder()

    def __call__(self, files: pa.Table) -> pa.Table:
        """Decode one block of the listing; see :func:`decode_blocks` for the columns."""
        return next(decode_blocks(self._decoder, self._plan.checkpoint.transform, files, rows=max(1, files.num_rows)))


class DecodedScorer:
    """The last two stages: what a GPU actor runs on decoded blocks."""

    def __init__(self, plan: ScorePlan) -> None:
        self._plan, self._finisher = plan, plan.finisher()
        self._predictor = load_predictor(plan.checkpoint, plan.settings)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Score and commit one decoded block; the one-row summary."""
        scored = score_block(self._predictor, decoded, plan=self._plan, finisher=self._finisher)
        return commit_block(scored, plan=self._plan)
