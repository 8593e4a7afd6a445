"""Where prepared pictures come from: a label CSV beside folders, whole folders of one class, or a ``datasets`` data set.

Each way ends in the same: candidates (name, file, label), and a list of what was left out and why.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from detector.errors import UsageError
from detector.images.listing import list_images
from detector.images.names import display_name
from detector.labels import Label, parse_label


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A picture that may be added.

    Attributes:
        name: its file name, as bytes, without folders.
        shown: what the user calls it (path below the folder, or row of the data set).
        path: absolute path of the file to take.
        label: its class.
    """

    name: bytes
    shown: str
    path: bytes
    label: Label


@dataclass(kw_only=True)
class Candidates:
    """What was found. ``left_out`` has (what the user calls it, reason), reasons being the keys of ``counts``."""

    found: list[Candidate] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Number of entries left out, by reason."""
        reasons = [reason for _, reason in self.left_out]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def from_folders(folders: Sequence[str], label: Label) -> Candidates:
    """Every file below the folders, as pictures of one class.

    Raises:
        UsageError: a folder is missing or holds no file.
    """
    files = _files(folders)
    found = [Candidate(name=os.path.basename(path), shown=shown, path=path, label=label) for shown, path in files.items()]
    return Candidates(found=found)


def from_csv(tables: Sequence[str], folders: Sequence[str], *, filename_column: str, label_column: str) -> Candidates:
    """Match the rows of label CSVs with files: by path below the folder, else by a file name that is the only one of its kind.

    A name without its extension also matches. Rows without a file, files without a row and files with two labels are left out.

    Raises:
        UsageError: a CSV cannot be read, lacks a column, or has a value that is no label; a folder is missing.
    """
    files = _files(folders)
    index = _name_index(files)
    result, labels = Candidates(), dict[str, set[Label]]()
    for name, label in _rows(tables, filename_column, label_column):
        shown = index.get(_normal(name))
        if shown is None:
            result.left_out.append((name, "row without a file"))
        else:
            labels.setdefault(shown, set()).add(label)
    for shown, path in files.items():
        if shown not in labels:
            result.left_out.append((shown, "file without a row"))
        elif len(labels[shown]) > 1:
            result.left_out.append((shown, "conflicting labels"))
        else:
            result.found.append(Candidate(name=os.path.basename(path), shown=shown, path=path, label=min(labels[shown])))
    return result


def from_dataset(dataset: str, *, split: str, label_column: str, staging: str) -> Candidates:
    """Open a data set by folder or hub id; pictures that are no files of their own are written below ``staging``.

    Raises:
        UsageError: it cannot be opened, has no image column, or its labels cannot be read.
    """
    from datasets import Image

    table = _open_dataset(dataset, split)
    image_column = next((name for name, feature in table.features.items() if isinstance(feature, Image)), None)
    if image_column is None:
        raise UsageError(f"--dataset {dataset} has no column of images; its columns are {', '.join(table.column_names)}")
    if label_column not in table.column_names:
        raise UsageError(
            f"--dataset {dataset} has no column {label_column!r}; its columns are {', '.join(table.column_names)}: "
            "name one with --label-column"
        )
    names = getattr(table.features[label_column], "names", None)
    result = Candidates()
    for row, item in enumerate(table.cast_column(image_column, Image(decode=False))):
        value = item[label_column]
        label = _label(names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value, f"row {row}")
        result.found.append(_from_row(item[image_column] or {}, label, row, staging))
    return result


def _files(folders: Sequence[str]) -> dict[str, bytes]:
    """Every file below the folders: path below its folder → absolute path. The first folder of two that share a name wins."""
    files: dict[str, bytes] = {}
    for folder in folders:
        if not os.path.isdir(folder):
            raise UsageError(f"--images {folder}: there is no such folder")
        listing = list_images([folder]).files
        for filename, path in zip(listing["filename"].to_pylist(), listing["path"].to_pylist(), strict=True):
            files.setdefault(filename.split("/", 2)[2], path)
    return files


def _name_index(files: dict[str, bytes]) -> dict[str, str]:
    """Every way to name a file → the file: its path, its name, either without the extension; what fits two files fits none."""
    index: dict[str, str] = {}
    for form in (
        os.path.basename,
        lambda name: os.path.splitext(name)[0],
        lambda name: os.path.splitext(os.path.basename(name))[0],
    ):
        forms = [form(shown) for shown in files]
        twice = {name for name in forms if forms.count(name) > 1} if len(set(forms)) < len(forms) else set()
        index.update({name: shown for name, shown in zip(forms, files, strict=True) if name not in twice and name not in index})
    index.update({shown: shown for shown in files})
    return index


def _normal(name: str) -> str:
    return name.strip().removeprefix("./")


def _rows(tables: Sequence[str], filename_column: str, label_column: str) -> Iterator[tuple[str, Label]]:
    import pandas as pd

    for table in tables:
        try:
            frame = pd.read_csv(table, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"--labels {table} cannot be read as CSV: {str(error).splitlines()[0]}") from None
        for column, flag in ((filename_column, "filename"), (label_column, "label")):
            if column not in frame.columns:
                columns = ", ".join(map(str, frame.columns))
                raise UsageError(
                    f"--labels {table} has no column {column!r}; its columns are {columns}: name one with --{flag}-column"
                )
        for number, (name, value) in enumerate(zip(frame[filename_column], frame[label_column], strict=True), start=2):
            yield str(name), _label(value, f"{table}, line {number}")


def _label(value: object, where: str) -> Label:
    try:
        return parse_label(value)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _open_dataset(dataset: str, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if os.path.isdir(dataset) and {"dataset_info.json", "dataset_dict.json"} & set(os.listdir(dataset)):
            opened = datasets.load_from_disk(dataset)
            return opened[split] if isinstance(opened, datasets.DatasetDict) else opened
        return datasets.load_dataset(dataset, split=split)
    except KeyError:
        raise UsageError(f"--dataset {dataset} has no split {split!r}: it has {', '.join(opened)}") from None
    except Exception as error:  # the library's network, format and cache errors share no base class
        text = str(error).strip().splitlines()
        raise UsageError(
            f"--dataset {dataset} cannot be opened ({text[0][:300] if text else type(error).__name__}): check the name and "
            "--dataset-split, or copy the data set here and give its folder"
        ) from error


def _from_row(image: dict[str, Any], label: Label, row: int, staging: str) -> Candidate:
    """A data set's image: its own file where it has one, else its bytes in a file of ours."""
    path, data = image.get("path"), image.get("bytes")
    own = os.fsencode(os.path.basename(path)) if path else b""
    if data is None and path and os.path.isfile(path):
        return Candidate(name=own, shown=display_name(own), path=os.fsencode(os.path.abspath(path)), label=label)
    name = own or f"{row:08d}{_extension(data or b'')}".encode()
    folder = os.path.join(staging, f"{row:08d}")
    os.makedirs(folder)
    target = os.path.join(os.fsencode(folder), name)
    with open(target, "wb") as file:
        file.write(data or b"")
    return Candidate(name=name, shown=f"row {row} ({display_name(name)})", path=target, label=label)


def _extension(data: bytes) -> str:
    """A file extension from a picture's first bytes; none where they are not known."""
    signatures = {
        b"\xff\xd8\xff": ".jpg",
        b"\x89PNG": ".png",
        b"GIF8": ".gif",
        b"BM": ".bmp",
        b"II*\0": ".tif",
        b"MM\0*": ".tif",
    }
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((extension for start, extension in signatures.items() if data.startswith(start)), "")
