"""What jobs.prepare is asked to do: one source of labelled pictures for a data folder."""

from dataclasses import dataclass
from typing import Literal

from detector.errors import UsageError
from detector.uris import is_uri

Link = Literal["hard", "symbolic", "copy"]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """One source to add to a data folder."""

    split: str
    """Split the pictures go to: train, test_2022, test_collected or any name."""
    source: str
    """Name of this source, for balance and metrics per source."""
    out: str
    """Data folder; made if there is none, added to if there is."""
    labels: tuple[str, ...] = ()
    """Label CSV(s): a column of file names and one of labels (0 or AI, 1 or Real)."""
    images: tuple[str, ...] = ()
    """Folder(s) with the pictures."""
    label: str | None = None
    """Class of all pictures in the folders: AI or Real."""
    dataset: str | None = None
    """Data set to add: a hub id, or a folder that the datasets library opens."""
    dataset_split: str = "train"
    """Which split of the data set to take."""
    link: Link = "hard"
    """How pictures get there; hard falls back to copies across file systems."""
    filename_column: str = "filename"
    """Column of the label CSV with file names, relative to the folder."""
    label_column: str = "label"
    """Column of the label CSV or the data set with labels."""
    allow_leakage: bool = False
    """Accept a picture of the split train that is also in another split."""

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: not exactly one kind of source, or a name that is no folder name.
        """
        ways = [bool(self.labels), self.label is not None, self.dataset is not None]
        if sum(ways) != 1:
            raise UsageError(
                "name one source: --labels CSV --images DIR, or --label AI|Real --images DIR, or --dataset ID_OR_DIR"
            )
        if self.dataset is None and not self.images:
            raise UsageError("--images DIR is missing: the folder that holds the pictures")
        if self.dataset is not None and self.images:
            raise UsageError("--dataset brings its own pictures: leave --images out")
        for flag, value in (("split", self.split), ("source", self.source)):
            if not value or "/" in value or value.startswith(".") or not value.isprintable():
                raise UsageError(f"--{flag} {value!r} must be a plain name: printable, no slash, no leading dot")
        if is_uri(self.out):
            raise UsageError(f"--out {self.out}: links need a local or mounted folder")
