"""The crontab line of docs/operations.md, run once as cron runs it."""

import json
import os
import re
import subprocess
from datetime import datetime

import pytest

from detector.reprocessing.config_file import read_collections
from tests import pictures
from tests.checkpoints import save_swin

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DOCS = os.path.join(ROOT, "docs", "operations.md")


def block(language):
    with open(DOCS, encoding="utf-8") as file:
        (found,) = re.findall(rf"```{language}\n(.*?)```", file.read(), re.DOTALL)
    return found


def command_of(line):
    """What cron hands to the shell: all behind the five time fields, up to a bare %; \\% is a %."""
    fields = line.split(maxsplit=5)
    assert all(re.fullmatch(r"[\d*/,-]+", field) for field in fields[:5])
    command, *stdin = re.split(r"(?<!\\)%", fields[5].rstrip("\n"))
    assert not stdin, "a bare % ends the command"
    return command.replace("\\%", "%")


def as_cron(command, home):
    shell = ["env", "-i", f"HOME={home}", "LOGNAME=someone", "SHELL=/bin/sh", "PATH=/usr/bin:/bin", "/bin/sh", "-c", command]
    return subprocess.run(shell, cwd=home, capture_output=True, text=True, check=False, timeout=200)


def test_the_documented_line_works_in_crons_environment(tmp_path):
    pictures.folder(tmp_path / "incoming", 4, seed=6)
    (tmp_path / "incoming" / "thumbs").mkdir()
    save_swin(tmp_path / "models" / "swin")
    config = tmp_path / "collections.toml"
    config.write_text(
        '[[collection]]\nname = "submissions"\nimages = "incoming"\nmodel = "models/swin"\nout = "predictions"\n'
        'engine = "local"\nscorers = 1\n'
    )
    command = command_of(block("crontab"))
    log = tmp_path / "reprocess.log"
    for documented, real in {
        "/srv/artwork-detector": ROOT, "/srv/art/collections.toml": str(config), "/srv/art/reprocess.log": str(log),
    }.items():  # fmt: skip
        assert documented in command
        command = command.replace(documented, real)
    day = datetime.now().astimezone().date()
    done = as_cron(command, tmp_path)
    text = log.read_text()
    assert done.returncode == 0, text
    assert (done.stdout, done.stderr) == ("", ""), "cron would send a mail"
    assert json.loads(text.splitlines()[-1])["changes"]["new"] == 4
    (record,) = os.listdir(tmp_path / "predictions" / "history")
    if datetime.now().astimezone().date() != day:
        pytest.skip("midnight passed: the second call has another slot")
    assert f"{day:%F}" in record
    assert as_cron(command, tmp_path).returncode == 0
    assert json.loads(log.read_text().splitlines()[-1])["status"] == "slot_done"


def test_the_documented_collections_file_is_valid(tmp_path):
    file = tmp_path / "collections.toml"
    file.write_text(block("toml"))
    assert [collection.name for collection in read_collections(str(file))] == ["submissions", "museum"]
