"""Settings: what a person or a deployment chooses, read once, at the edge.

Precedence: explicit argument > environment `MEMWEAVE_*` > `.env` > `memweave.toml` > default; both files are looked for
in the working folder. An empty value in the environment or in `.env` counts as not given. A key that is no setting is
refused, wherever it comes from, so that a misspelt one does not silently become a default. In the environment and in
`.env` only names with our prefix are ours.

This module does not know the bank, the models or the graphs; it hands out plain values.
"""

from __future__ import annotations

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from memweave.errors import SettingsError
from memweave.records import Name

PREFIX: Final = "MEMWEAVE_"
ENV_FILE: Final = ".env"
TOML_FILE: Final = "memweave.toml"

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spec = Annotated[str, Field(min_length=1)]


class Settings(BaseSettings):
    """Everything that can be set. Construct it with `Settings.load`; an argument of `None` means "not given"."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    home: Path = Path(".memweave")
    """Folder of the ledger and the embedded index; created on first use."""
    data: Path | None = None
    """Folder of the public data sets (LoCoMo, HotpotQA, MuSiQue), for evaluation only."""
    ledger_url: SecretStr | None = None
    """SQLAlchemy URL of the ledger, e.g. `postgresql+psycopg://USER:PASSWORD@HOST/DB`; without it, SQLite in `home`."""
    qdrant_url: str | None = None
    """URL of a Qdrant server; without it, Qdrant Edge in `home`."""
    qdrant_api_key: SecretStr | None = None
    """Key of the Qdrant server."""
    embedding: Spec | None = None
    """`minilm`, `hashing`, `hashing:DIMENSIONS` or `openai:MODEL@URL`; without it, what `home` was made with, else
    MiniLM if it is installed, else hashing."""
    embedding_api_key: SecretStr | None = None
    """Key of the embedding endpoint."""
    model: Spec = "rule"
    """Who extracts, manages and answers: `rule` (no model), or a chat model: `openai:NAME` or `openai:NAME@URL`."""
    extractor: Spec | None = None
    """Model of the extractor, when it is not `model`."""
    manager: Spec | None = None
    """Model of the memory manager, when it is not `model`."""
    answerer: Spec | None = None
    """Model of the answerer, when it is not `model`."""
    planner: Spec | None = None
    """Model of Memento's planner, when it is not `model`."""
    executor: Spec | None = None
    """Model of Memento's executor, when it is not `model`."""
    judge: Spec | None = None
    """Model that grades answers in evaluations; without it there is no judge column."""
    model_api_key: SecretStr | None = None
    """Key of the chat model's endpoint."""
    model_timeout: Seconds = 60.0
    """Seconds that one call of a chat model may take."""
    vllm_env: Path | None = None
    """Folder of the environment that holds vLLM, for `memweave serve`; without it, one in the user's cache folder."""
    store_timeout: Seconds = 30.0
    """Seconds that one request to a Qdrant server or an embedding endpoint may take."""
    tenant: Name = "default"
    """Whose installation this is; with `user` it makes the scope that every read and write carries."""
    user: Name | None = None
    """Whose memories, when the command or call does not say."""
    recall_tokens: Annotated[int, Field(ge=1)] = 2_000
    """Most tokens of recalled memories that a chat agent puts before the model."""

    @classmethod
    def load(cls, **explicit: Any) -> Self:
        """Read all sources once and return the settings.

        Raises `SettingsError`: an unknown key with its place and near matches, a bad value with key and expectation.
        """
        given = {key: value for key, value in explicit.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(_explain(cls, error, given)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from, the strongest first."""
        return (_Source(settings_cls, "argument", init_settings()), *_read_sources(settings_cls))


class _Source(PydanticBaseSettingsSource):
    """One place of settings: refuses keys that are no setting, and knows how a key is spelt there."""

    def __init__(self, settings_cls: type[BaseSettings], place: str, values: dict[str, Any], prefix: str = "") -> None:
        super().__init__(settings_cls)
        self.place, self.values, self.prefix = place, values, prefix
        for key in sorted(values.keys() - settings_cls.model_fields.keys()):
            near = get_close_matches(key, settings_cls.model_fields, n=3) or sorted(settings_cls.model_fields)
            raise SettingsError(
                f"{self.spell(key)} ({place}) is not a setting. Did you mean {', '.join(map(self.spell, near))}?"
            )

    def spell(self, key: str) -> str:
        """Return `key` as it is written in this place."""
        return self.prefix + (key.upper() if self.prefix else key)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self.values


def _read_sources(settings_cls: type[BaseSettings]) -> list[_Source]:
    return [
        _Source(settings_cls, "environment", _ours(dict(os.environ)), PREFIX),
        _Source(settings_cls, ENV_FILE, _ours(_dotenv(Path(ENV_FILE))), PREFIX),
        _Source(settings_cls, TOML_FILE, _toml(Path(TOML_FILE))),
    ]


def _ours(variables: dict[str, str | None]) -> dict[str, Any]:
    """Return the variables with our prefix, named as fields; those without a value are left out."""
    return {
        key.upper().removeprefix(PREFIX).lower(): value
        for key, value in variables.items()
        if key.upper().startswith(PREFIX) and value
    }


def _dotenv(path: Path) -> dict[str, str | None]:
    if not path.is_file():
        return {}
    try:
        return dict(dotenv_values(path, interpolate=False))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}. Mend or remove the file.") from None


def _toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}. Mend or remove the file.") from None


def _explain(cls: type[BaseSettings], error: ValidationError, given: dict[str, Any]) -> str:
    """Return one line: the first bad key as it was spelt, its value (unless secret), and what was expected."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    source = next(s for s in [_Source(cls, "argument", given), *_read_sources(cls)] if key in s.values)
    annotation = str(cls.model_fields[key].annotation)
    value = "(hidden)" if "SecretStr" in annotation else repr(source.values[key])
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{source.spell(key)} = {value} ({source.place}) is not valid: expected {expected}"
