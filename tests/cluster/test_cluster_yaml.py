"""cluster.yaml: valid for Ray's launcher, authenticated, closed to the outside, and explained."""

import copy
import os
import re
import shlex

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.conftest import ROOT

FILE = os.path.join(ROOT, "cluster.yaml")


@pytest.fixture(scope="module")
def text():
    with open(FILE, encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def config(text):
    return yaml.safe_load(text)


def starts(config):
    """The commands that start a part of Ray, head first."""
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    found = [command for command in commands if "ray start" in command]
    assert len(found) == 2
    return found


def flags(command):
    """--name=value of the `ray start` in a shell command."""
    words = shlex.split(command[command.index("ray start") :])
    return dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))


def test_the_launcher_accepts_it(config):
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    (only,) = prepared["available_node_types"].values()
    assert only["min_workers"] == only["max_workers"] == len(config["provider"]["worker_ips"])
    assert only["resources"] == {}, "each host reports its own CPUs and GPUs"


def test_the_check_can_fail(config):
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**config, "worker_hosts": ["a"]}))


def test_every_start_turns_the_token_on_and_keeps_it_private(config):
    for command in starts(config):
        before, _, _ = command.partition("ray start")
        assert re.search(r"export .*RAY_AUTH_MODE=token\b", before)
        assert 'RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"' in before
        assert "chmod 600 ~/.ray/auth_token" in before
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_stays_on_loopback(config):
    head, worker = (flags(command) for command in starts(config))
    assert head["dashboard-host"] == "127.0.0.1"
    assert worker.get("dashboard-host", "127.0.0.1") == "127.0.0.1"


def test_hosts_count_their_own_cpus_and_gpus(config):
    for command in starts(config):
        given = flags(command)
        assert not {"num-cpus", "num-gpus"} & set(given)
        assert "ray-resources.json" in given["resources"]


def test_every_port_is_one_that_the_firewall_example_opens(config):
    with open(os.path.join(ROOT, "docs", "operations.md"), encoding="utf-8") as file:
        rule = re.search(r"tcp dport \{ (\d+)-(\d+), (\d+)-(\d+) \} accept", file.read())
    low, high, worker_low, worker_high = map(int, rule.groups())
    for command in starts(config):
        ports = {name: int(value) for name, value in flags(command).items() if name.endswith("port")}
        assert {"node-manager-port", "object-manager-port", "min-worker-port", "max-worker-port"} <= set(ports)
        ports.pop("dashboard-port", None)  # loopback
        for name, port in ports.items():
            assert low <= port <= high or worker_low <= port <= worker_high, name


def test_the_ports_are_flags_that_ray_start_knows(config):
    from ray.scripts.scripts import start

    known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    for command in starts(config):
        assert set(flags(command)) <= known


def test_every_placeholder_is_explained_at_the_top_and_every_local_file_is_there(text, config):
    head, _, _ = text.partition("cluster_name:")
    values = [config["provider"]["head_ip"], *config["provider"]["worker_ips"], *config["auth"].values()]
    placeholders = [word for value in values for word in re.findall(r"[A-Z][A-Z_0-9]{3,}", value)]
    assert len(placeholders) == 5
    for word in placeholders:
        assert f"#   {word} " in head or f"#   {word}\n" in head
    for source in config["file_mounts"].values():
        assert source.startswith("~") or os.path.exists(os.path.join(ROOT, source)), source
