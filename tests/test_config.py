"""Settings: precedence, unknown keys, bad values, secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memweave.config import Settings
from memweave.errors import SettingsError


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MEMWEAVE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_need_no_source() -> None:
    settings = Settings.load()
    assert settings.home == Path(".memweave")
    assert settings.model == "rule"
    assert settings.user is None


def test_each_source_beats_the_one_below_it(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_folder / "memweave.toml").write_text('tenant = "toml"')
    assert Settings.load().tenant == "toml"
    (working_folder / ".env").write_text("MEMWEAVE_TENANT=dotenv\n")
    assert Settings.load().tenant == "dotenv"
    monkeypatch.setenv("MEMWEAVE_TENANT", "environment")
    assert Settings.load().tenant == "environment"
    assert Settings.load(tenant="argument").tenant == "argument"


def test_sources_are_merged_key_by_key(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_folder / "memweave.toml").write_text('tenant = "acme"\nrecall_tokens = 500')
    (working_folder / ".env").write_text("MEMWEAVE_USER=anna\n")
    monkeypatch.setenv("MEMWEAVE_MODEL_TIMEOUT", "7.5")
    settings = Settings.load(home="/data")
    assert (settings.tenant, settings.recall_tokens) == ("acme", 500)
    assert (settings.user, settings.model_timeout, settings.home) == ("anna", 7.5, Path("/data"))


def test_none_and_empty_mean_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWEAVE_MODEL", "")
    monkeypatch.setenv("MEMWEAVE_TENANT", "acme")
    assert Settings.load(tenant=None).tenant == "acme"
    assert Settings.load().model == "rule"


def test_a_value_equal_to_the_default_still_wins_when_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWEAVE_MODEL", "openai:gpt-x")
    assert Settings.load(model="rule").model == "rule"


@pytest.mark.parametrize(
    ("place", "spelt"),
    [
        ("argument", "tennant"),
        ("environment", "MEMWEAVE_TENNANT"),
        (".env", "MEMWEAVE_TENNANT"),
        ("memweave.toml", "tennant"),
    ],
)
def test_unknown_key_names_key_place_and_near_match(
    place: str, spelt: str, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explicit = {}
    if place == "argument":
        explicit = {"tennant": "acme"}
    elif place == "environment":
        monkeypatch.setenv("MEMWEAVE_TENNANT", "acme")
    elif place == ".env":
        (working_folder / ".env").write_text("MEMWEAVE_TENNANT=acme\n")
    else:
        (working_folder / "memweave.toml").write_text('tennant = "acme"')
    with pytest.raises(SettingsError) as caught:
        Settings.load(**explicit)
    near = spelt.replace("tennant", "tenant").replace("TENNANT", "TENANT")
    assert f"{spelt} ({place}) is not a setting" in str(caught.value)
    assert near in str(caught.value).partition("Did you mean")[2]


def test_a_key_unlike_any_setting_lists_them_all() -> None:
    with pytest.raises(SettingsError, match="answerer.*tenant.*user"):
        Settings.load(zzzzzz=1)


def test_other_programs_variables_are_not_ours(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_folder / ".env").write_text("DATABASE_URL=x\nOPENAI_API_KEY=y\n")
    monkeypatch.setenv("TENANT", "acme")
    assert Settings.load().tenant == "default"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL_TIMEOUT", "soon", "number"),
        ("MODEL_TIMEOUT", "0", "greater than 0"),
        ("MODEL_TIMEOUT", "nan", "finite"),
        ("RECALL_TOKENS", "1.5", "integer"),
        ("USER", "a\tb", "control characters"),
    ],
)
def test_bad_value_names_key_value_and_expectation(
    key: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MEMWEAVE_{key}", value)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    message = str(caught.value)
    assert f"MEMWEAVE_{key} = {value!r} (environment)" in message
    assert expected in message
    assert "\n" not in message


def test_bad_value_is_blamed_on_the_source_that_won(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_folder / "memweave.toml").write_text('recall_tokens = "many"')
    with pytest.raises(SettingsError, match=r"recall_tokens = 'many' \(memweave.toml\)"):
        Settings.load()
    monkeypatch.setenv("MEMWEAVE_RECALL_TOKENS", "5")
    assert Settings.load().recall_tokens == 5


def test_secrets_are_neither_printed_nor_shown_in_errors(working_folder: Path) -> None:
    settings = Settings.load(ledger_url="postgresql://me:hunter2@db/x", model_api_key="sk-hunter2")
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    (working_folder / "memweave.toml").write_text("model_api_key = [ 'hunter2' ]")
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert "hunter2" not in str(caught.value)
    assert "model_api_key" in str(caught.value)


@pytest.mark.parametrize("name", ["memweave.toml", ".env"])
def test_a_file_that_cannot_be_read_is_named(name: str, working_folder: Path) -> None:
    (working_folder / name).write_bytes(b'tenant = "\xff')
    with pytest.raises(SettingsError, match=f"{re.escape(name)} cannot be read"):
        Settings.load()


def test_settings_cannot_change_after_they_were_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().tenant = "other"  # type: ignore[misc]  # the point of the test


def test_examples_and_documentation_list_every_setting(root: Path) -> None:
    fields = set(Settings.model_fields)
    env = set(re.findall(r"^#?\s?MEMWEAVE_(\w+)=", (root / ".env.example").read_text(), re.M))
    toml = set(re.findall(r"^#?\s?(\w+) = ", (root / "memweave.toml.example").read_text(), re.M))
    table = set(re.findall(r"^\| `(\w+)` \|", (root / "docs/configuration.md").read_text(), re.M))
    assert {name.lower() for name in env} == fields
    assert toml == fields - {"qdrant_api_key", "embedding_api_key", "model_api_key", "ledger_url"}
    assert table == fields


def test_example_files_are_accepted_with_every_line_switched_on(
    root: Path, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".env", "memweave.toml"):
        text = (root / f"{name}.example").read_text()
        on = re.sub(r"^# ?(?=(MEMWEAVE_)?[a-zA-Z_]+ ?=)", "", text, flags=re.M)
        (working_folder / name).write_text(on)
        assert Settings.load().user == "anna"
        (working_folder / name).unlink()
