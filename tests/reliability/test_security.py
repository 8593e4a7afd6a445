"""Names, checkpoints and modules of strangers do nothing; a private Ray's token is private; workers ask no network."""

import csv
import html.parser
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from detector import cluster
from detector.labels import Label
from tests.checkpoints import save_swin
from tests.images.hostile import ODD_NAMES, encode, picture
from tests.scoring.test_local import ROOT, read

NAMES = (
    *ODD_NAMES, b"\x1b[2J\x1b[31mred.png", b"\x1b]0;title\x07.png", b"\x9b31m.png", "\u2066isolate\u200b.png".encode(),
    b"back\b\b.png",
    b"=HYPERLINK(evil).png", b"+1+cmd.png", b"-2+3.png", b"'; DROP TABLE x;--.png", b"{{ 7 * 7 }}.png", b"%s%n.png",
    b"<svg onload=alert(1)>.png", b"&lt;script&gt;.png", b"$(touch bait).png", b"`touch bait`.png",
)  # fmt: skip
FOLDER = b"=<b onload=x>\x1b[31m\n"


def is_plain(text):
    """Whether a terminal or log shows every character of ``text`` for what it is."""
    return all(char.isprintable() or char == "\n" for char in text)


class Page(html.parser.HTMLParser):
    """The tags and the attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture(scope="module")
def named(tmp_path_factory, model, score):
    """(folder of hostile names, the run's output, its stderr); half of the files are pictures."""
    folder = os.path.join(os.fsencode(tmp_path_factory.mktemp("names")), FOLDER)
    os.mkdir(folder)
    for at, name in enumerate(NAMES):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(encode(picture(seed=at), "PNG"))
        with open(os.path.join(folder, name[:200] + b"_broken"), "wb") as file:
            file.write(b"no picture \x1b[31m<script>alert(1)</script>")
        os.symlink(b"/dev/zero", os.path.join(folder, name[:200] + b"_link"))
    out = tmp_path_factory.mktemp("names") / "out"
    summary, done = score("--images", os.fsdecode(folder), "--model", model, "--out", out, "--engine", "local")
    assert (summary["scored"], summary["failed"], summary["skipped"]) == (len(NAMES),) * 3
    return folder, str(out), done.stderr


def lines_of(out, name):
    with open(os.path.join(out, name), newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_hostile_names_come_back_exactly(named):
    folder, out, _ = named
    rows = pq.read_table(os.path.join(out, "predictions.parquet")).to_pylist()
    found = {row["path_bytes"] for row in rows}
    files = {entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)}
    assert found == {b"./" + FOLDER + b"/" + name for name in files}
    scored = [row["filename"] for row in rows if row["error"] is None]
    assert [line[2] for line in lines_of(out, "predictions.csv")[1:]] == scored
    assert len(lines_of(out, "skipped.csv")) == len(NAMES) + 1


def test_no_field_of_a_csv_is_a_formula(named):
    _, out, _ = named
    for name in ("predictions.csv", "errors.csv", "skipped.csv"):
        assert not [field for line in lines_of(out, name) for field in line if field[:1] in {*"=+-@\t\r\n"}], name


def test_hostile_names_do_not_reach_a_terminal(named, model, score, tmp_path):
    _, _, stderr = named
    assert is_plain(stderr)
    gone = os.fsdecode(b"/nowhere/\x1b[31mred\x07\r\xe2\x80\xae")
    for flags in (("--images", gone, "--model", model), ("--images", os.fsdecode(named[0]), "--model", gone)):
        _, done = score(*flags, "--out", tmp_path / "out", check=2)
        assert is_plain(done.stderr)
        assert is_plain(done.stdout)
        assert "31mred" in done.stderr, "the name is shown, with its control characters as escapes"


def test_a_report_of_hostile_names_holds_no_markup_of_theirs(named, tmp_path):
    """Every picture is called wrongly, so that the surest mistakes list their names."""
    _, out, _ = named
    rows = pq.read_table(os.path.join(out, "predictions.parquet")).to_pylist()
    with open(tmp_path / "truth.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label"])
        wrong = {Label.AI: int(Label.REAL), Label.REAL: int(Label.AI)}
        writer.writerows([row["filename"], wrong[row["label"]]] for row in rows if row["error"] is None)
    for extra in ((), ("--truth", tmp_path / "truth.csv")):
        command = [sys.executable, "-m", "jobs.evaluate", "--predictions", out, "--out", tmp_path / "report", *extra]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        assert is_plain(done.stderr)
        text = (tmp_path / "report" / "report.html").read_bytes().decode()
        page = Page(text)
        assert not {"script", "img", "iframe", "object"} & page.tags
        assert not [name for name in page.attributes if name.startswith("on")]
        assert not [char for char in text if not char.isprintable() and char != "\n"]
    assert "HYPERLINK" in text or "onload" in text, "the names are there, as text"


def plant(folder, bait):
    """Put into a checkpoint's folder everything that a careless loader would run; each would create ``bait``."""
    code = f"open({str(bait)!r}, 'w').close()\n"

    class Bomb:
        def __reduce__(self):
            return (open, (str(bait), "w"))

    with open(os.path.join(folder, "pytorch_model.bin"), "wb") as file:
        pickle.dump(Bomb(), file)
    for name in ("evil", "modeling_swin", "sitecustomize", "torch", "numpy", "transformers"):
        with open(os.path.join(folder, f"{name}.py"), "w", encoding="utf-8") as file:
            file.write(code)
    auto = {
        "config.json": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"},
        "preprocessor_config.json": {"AutoImageProcessor": "evil.Processor"},
    }
    for name, classes in auto.items():
        path = os.path.join(folder, name)
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(
                {**config, "auto_map": classes, "custom_pipelines": {"x": {"impl": "evil.P"}}, "trust_remote_code": True}, file
            )


@pytest.fixture
def planted(tmp_path):
    """(a checkpoint with traps, the file that any of them would create)."""
    bait = tmp_path / "bait"
    folder = save_swin(tmp_path / "planted")
    plant(folder, bait)
    return folder, bait


def test_the_traps_work(planted):
    """Without this the tests below could pass because the traps are broken."""
    folder, bait = planted
    with open(os.path.join(folder, "pytorch_model.bin"), "rb") as file:
        pickle.load(file)
    assert bait.exists()
    bait.unlink()
    subprocess.run([sys.executable, "-c", "import evil"], cwd=folder, check=True)
    assert bait.exists()


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_traps_in_a_checkpoint_do_nothing(planted, folder, undisturbed, score, tmp_path, engine):
    """The scores are those of the same checkpoint without them. A private Ray's token is its owner's alone."""
    trapped, bait = planted
    home = tmp_path / "home"
    home.mkdir()
    score("--images", folder, "--model", trapped, "--out", tmp_path / "out", "--engine", engine, HOME=str(home))
    assert not bait.exists()
    assert read(tmp_path / "out") == read(undisturbed[0])
    if engine == "ray":
        token = os.stat(home / ".ray" / "auth_token")
        assert stat.S_IMODE(token.st_mode) == 0o600
        assert token.st_size >= 32


def test_a_checkpoint_that_is_only_a_trap_is_wrong_use(planted, folder, score, tmp_path):
    trapped, bait = planted
    flags = ("--images", folder, "--out", tmp_path / "out", "--engine", "local")
    unknown = tmp_path / "unknown"
    shutil.copytree(trapped, unknown)
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"model_type": "evil", "architectures": ["evil.Model"]}))
    _, done = score(*flags, "--model", unknown, check=2)
    assert "cannot be loaded" in done.stderr
    os.unlink(os.path.join(trapped, "model.safetensors"))
    _, done = score(*flags, "--model", trapped, check=2)
    assert "--convert-weights" in done.stderr
    _, done = score(*flags, "--model", trapped, "--convert-weights", tmp_path / "converted", check=2)
    assert "it is not used" in done.stderr
    assert not bait.exists()


def test_a_run_asks_no_network(folder, model, tmp_path):
    """An audit hook in every Python process of a local run: no host is looked up, no internet socket connected."""
    seen = tmp_path / "seen"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import sys\n"
        "def write(*words):\n"
        f"    with open({str(seen)!r}, 'a') as file:\n"
        "        print(*words, file=file)\n"
        "def hook(event, args):\n"
        "    if event == 'socket.getaddrinfo' or (event == 'socket.connect' and isinstance(args[1], tuple)):\n"
        "        write(event, args[-1] if event == 'socket.connect' else args[0])\n"
        "sys.addaudithook(hook)\n"
        "write('watched')\n"
    )
    command = [sys.executable, "-m", "jobs.score", "--images", folder, "--model", model, "--out", str(tmp_path / "out"),
               "--engine", "local", "--scorers", "1"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "hook")}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        env.pop(name, None)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = seen.read_text().splitlines()
    assert lines.count("watched") >= 3, "the driver, the scorer and its decoder are watched"
    assert set(lines) == {"watched"}


def test_scoring_turns_the_model_hub_off():
    from detector.models.devices import resolve_settings

    code = (
        "from detector.models.devices import resolve_settings\n"
        "from detector.models.predictor import prepare_torch\n"
        "prepare_torch(resolve_settings(kind='cpu', batch_size=None, precision='fp32'))\n"
        "import huggingface_hub.constants as constants\n"
        "assert constants.HF_HUB_OFFLINE\n"
    )
    assert resolve_settings(kind="cpu", batch_size=None, precision="fp32")
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, timeout=100)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without a token, and no word about tokens in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_is_made_private_and_an_open_one_is_closed(home):
    cluster._keep_token_private()
    path = home / ".ray" / "auth_token"
    first = path.read_text()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert len(first) == 64
    assert os.listdir(home / ".ray") == ["auth_token"]
    path.chmod(0o644)
    cluster._keep_token_private()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert path.read_text() == first
    path.chmod(0o640)  # a group's, on purpose
    cluster._keep_token_private()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


def test_a_token_that_the_user_names_is_left_alone(home, monkeypatch):
    for name, value in (("RAY_AUTH_TOKEN", "x" * 32), ("RAY_AUTH_TOKEN_PATH", "/elsewhere"), ("RAY_AUTH_MODE", "disabled")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            cluster._keep_token_private()
        assert not (home / ".ray").exists()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_plain_token_file_is_left_alone(home, kind):
    (home / ".ray").mkdir()
    path, target = home / ".ray" / "auth_token", home / "target"
    target.write_text("mine")
    target.chmod(0o644)
    {"link": lambda: path.symlink_to(target), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    before = stat.S_IMODE(os.lstat(path).st_mode)
    try:
        cluster._keep_token_private()
    except OSError:
        assert kind == "link"
    assert stat.S_IMODE(os.lstat(path).st_mode) == before
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o644
