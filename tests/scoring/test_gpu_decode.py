"""--decode gpu: JPEGs are handed on as they are, and every row ends as it does when they are decoded on the CPU.

Where there is no GPU, torchvision's CPU decoder stands for NVIDIA's: what is tested is everything around it.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from detector.images.decoding import Decoder
from detector.images.listing import list_images
from detector.images.pixels import DecodeLimits, leave_encoded
from detector.models.checkpoint import inspect_checkpoint
from detector.models.gpu_jpeg import GpuJpegDecoder, is_out_of_memory
from detector.scoring import stages
from detector.scoring.encoded import COLUMNS, JpegFinisher
from detector.scoring.rows import pixel_rows
from tests import pictures

LIMITS = DecodeLimits()


class StandIn:
    """Decodes on the CPU, and refuses what it is told to, as nvJPEG does: no partial result."""

    def __init__(self, *, refuse=lambda data: False, fit=lambda data: True):
        self.refuse, self.fit, self.calls, self.pixels = refuse, fit, [], []

    def __call__(self, files):
        self.calls.append(len(files))
        data = [bytes(file.numpy()) for file in files]
        if any(self.refuse(one) for one in data):
            raise RuntimeError("nvjpegDecode failed: 3")
        if not all(self.fit(one) for one in data):
            raise torch.OutOfMemoryError("CUDA out of memory")
        decoded = [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]
        self.pixels.append(sum(picture[0].numel() for picture in decoded))
        return decoded


@pytest.fixture
def transform(model):
    return inspect_checkpoint(model).transform


@pytest.fixture
def files(folder, tmp_path):
    """The usual kinds, every orientation, damaged data, a file that is cut, and one that holds two pictures."""
    rng = np.random.default_rng(4)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(pictures.array(rng, 40, 70)).save(tmp_path / f"turn-{turn}.jpg", exif=exif)
    plain = (tmp_path / "turn-1.jpg").read_bytes()
    middle = len(plain) // 2
    (tmp_path / "damaged.jpg").write_bytes(plain[:middle] + b"\xff\xc4\0\1" * 9 + plain[middle:])
    (tmp_path / "cut.jpg").write_bytes(plain[:-300])
    two = [Image.fromarray(pictures.array(rng, 40, 70)) for _ in range(2)]
    two[0].save(tmp_path / "two.mpo", "MPO", save_all=True, append_images=two[1:])
    return list_images([folder, str(tmp_path)]).files


def decoded(files, transform, *, leave_jpegs):
    with Decoder(LIMITS, leave_jpegs=leave_jpegs) as decoder:
        return next(stages.decode_blocks(decoder, transform, files, rows=files.num_rows))


def is_damaged(data):
    return b"\xff\xc4\0\1" * 9 in data


def test_every_row_ends_as_it_does_on_the_cpu(files, transform):
    expected = decoded(files, transform, leave_jpegs=False)
    left = decoded(files, transform, leave_jpegs=True)
    handed_on = left["encoded"].is_valid().to_numpy()
    assert handed_on.sum() > 30
    assert set(np.array(expected["format"].to_pylist())[handed_on]) == {"JPEG", "MPO", None}
    gpu = StandIn(refuse=is_damaged)
    finisher = JpegFinisher(transform, LIMITS, gpu=GpuJpegDecoder(transform, decode=gpu))
    finished = finisher(left)
    finisher.close()
    assert finished.column_names == expected.column_names
    facts = [name for name in expected.column_names if name != "pixels"]
    for name in facts:
        assert finished[name].to_pylist() == expected[name].to_pylist(), name
    good = expected["error"].is_null().to_numpy()
    gap = np.abs(pixel_rows(finished["pixels"])[good].astype(int) - pixel_rows(expected["pixels"])[good])
    assert gap.max() == 0
    assert 1 < len(gpu.calls) < 2 * np.log2(handed_on.sum()) + 2  # halved, not tried one by one


def test_a_picture_that_does_not_fit_the_gpu_is_model_failed_alone(files, transform):
    left = decoded(files, transform, leave_jpegs=True)
    row = int(np.flatnonzero(left["encoded"].is_valid().to_numpy())[3])
    large = left["encoded"][row].as_py()
    gpu = StandIn(refuse=is_damaged, fit=lambda data: data != large)
    finisher = JpegFinisher(transform, LIMITS, gpu=GpuJpegDecoder(transform, decode=gpu))
    errors = finisher(left)["error"].to_pylist()
    finisher.close()
    expected = decoded(files, transform, leave_jpegs=False)["error"].to_pylist()
    assert errors[row] == "model_failed"
    assert [error for at, error in enumerate(errors) if at != row] == [error for at, error in enumerate(expected) if at != row]


def test_threads_may_share_a_finisher_and_tables_without_jpegs_pass(files, transform):
    from concurrent.futures import ThreadPoolExecutor

    left = decoded(files, transform, leave_jpegs=True)
    finisher = JpegFinisher(transform, LIMITS, gpu=GpuJpegDecoder(transform, decode=StandIn(refuse=is_damaged)))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(finisher, [left] * 8))
    finisher.close()
    assert all(result.equals(results[0]) for result in results)
    names = [name for name, _ in COLUMNS]
    none = left.filter(left["encoded"].is_null())
    assert finisher(none).equals(none.drop_columns(names))


def test_the_gpu_never_holds_more_pixels_than_its_bound(files, transform, monkeypatch):
    monkeypatch.setattr("detector.models.gpu_jpeg._MOST_PIXELS", 20_000)
    left = decoded(files, transform, leave_jpegs=True)
    gpu = StandIn(refuse=is_damaged)
    finisher = JpegFinisher(transform, LIMITS, gpu=GpuJpegDecoder(transform, decode=gpu))
    finished = finisher(left)
    finisher.close()
    assert len(gpu.pixels) > 5
    assert max(gpu.pixels) <= 20_000
    whole = JpegFinisher(transform, LIMITS, gpu=GpuJpegDecoder(transform, decode=StandIn(refuse=is_damaged)))
    monkeypatch.undo()
    assert finished.equals(whole(left))
    whole.close()


@pytest.mark.parametrize(("text", "memory"), [
    ("Error while decoding JPEG images: CUDA out of memory. Tried to allocate 3.00 GiB", True),
    ("Error while decoding JPEG images: Failed to decode batch: nvjpegDecodeBatched failed: 5", True),
    ("Error while decoding JPEG images: Failed to parse jpeg stream: nvjpegJpegStreamParse failed: 3", False),
    ("Error while decoding JPEG images: nvjpegDecodeJpegHost failed: 2", False),
])  # fmt: skip
def test_want_of_memory_is_told_from_a_bad_file(text, memory):
    assert is_out_of_memory(RuntimeError(text)) == memory


def jpeg(height, width, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_only_plain_jpegs_of_ordinary_size_are_left_to_the_gpu():
    found = leave_encoded(jpeg(60, 80), LIMITS)
    assert (found.width, found.height, found.turn) == (80, 60, 1)
    noise = jpeg(1700, 1700, quality=100, subsampling=0)
    assert len(noise) > 4 * 2**20
    assert leave_encoded(noise, LIMITS) is None
    assert leave_encoded(jpeg(60, 80)[:-2], LIMITS) is None
    buffer = io.BytesIO()
    Image.new("CMYK", (80, 60)).save(buffer, "JPEG")
    assert leave_encoded(buffer.getvalue(), LIMITS) is None
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60)).save(buffer, "PNG")
    assert leave_encoded(buffer.getvalue(), LIMITS) is None


def test_without_a_gpu_it_is_refused(score, model, folder, tmp_path):
    _, done = score(
        "--images", folder, "--model", model, "--out", tmp_path / "out", "--decode", "gpu", "--engine", "local", check=2
    )
    assert "--decode gpu needs an NVIDIA GPU" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_nvjpeg_is_close_to_the_cpu(files, transform):
    expected = decoded(files, transform, leave_jpegs=False)
    finisher = JpegFinisher(transform, LIMITS)
    finished = finisher(decoded(files, transform, leave_jpegs=True))
    finisher.close()
    assert finished.select(["filename", "sha256", "width", "height"]).equals(
        expected.select(["filename", "sha256", "width", "height"])
    )
    good = expected["error"].is_null().to_numpy() & finished["error"].is_null().to_numpy()
    gap = np.abs(pixel_rows(finished["pixels"])[good].astype(int) - pixel_rows(expected["pixels"])[good])
    print("mean", gap.mean(), "max", gap.max())
    assert gap.mean() < 1
