"""The TOML file: what is unknown or of the wrong kind is named; flags and environment win over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from trivium.admin import config, systemd
from trivium.admin.cli.processes import node
from trivium.admin.errors import CommandError

EXAMPLE = Path(__file__).parents[2] / "deploy" / "systemd" / "trivium.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[nod]\ndrives = 2", "unknown key 'nod'; did you mean 'node'?"),
        ("[node]\ndrive = 2", "unknown key 'drive' in [node]; did you mean 'drives'?"),
        ('[node]\ndrives = "two"', "node.drives: expected `int"),
        ("[node\n", "toml"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(CommandError) as error:
        config.read(path, "node")
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_the_example_is_right() -> None:
    assert config.read(EXAMPLE, "node")["domain"] == "rack1/host1"
    assert config.read(EXAMPLE, "s3")["listen"] == "0.0.0.0:9000"
    assert config.read(EXAMPLE, "metadata")["log_format"] == "json"


def test_flags_and_environment_win(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('connect = "/c"\n[node]\ndata = "/x"\ndrives = 3\ndomain = "a/b"\nname = "file"\n')
    seen: dict[str, object] = {}
    command = type(node)(name="node", params=node.params, callback=lambda **values: seen.update(values))
    done = CliRunner().invoke(
        command, ["--config", str(path), "--name", "flag"], env={"TRIVIUM_NODE_DOMAIN": "env/env"}
    )
    assert done.exit_code == 0, done.output
    assert (seen["drives"], seen["domain"], seen["name"]) == (3, "env/env", "flag")
    assert str(seen["directory"].path) == "/x" and str(seen["data"].path) == "/c"  # type: ignore[attr-defined]


def test_nobody_to_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not systemd.notify("READY=1")
