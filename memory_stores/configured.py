"""From settings to an open bank: the one place that knows which setting is which argument."""

from __future__ import annotations

from pydantic import SecretStr

from memweave.config import Settings
from memweave.memory_stores.bank import MemoryBank
from memweave.memory_stores.opening import open_bank


def open_bank_from(settings: Settings) -> MemoryBank:
    """Open the bank that the settings describe. Raises: as `open_bank`."""
    return open_bank(
        settings.home,
        embedding=settings.embedding,
        embedding_api_key=plain(settings.embedding_api_key),
        ledger_url=plain(settings.ledger_url),
        qdrant_url=settings.qdrant_url,
        qdrant_api_key=plain(settings.qdrant_api_key),
        timeout=settings.store_timeout,
    )


def plain(secret: SecretStr | None) -> str | None:
    """Return what a secret holds."""
    return secret.get_secret_value() if secret else None
