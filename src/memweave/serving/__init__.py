"""Policy servers: where trained weights answer graphs."""

from memweave.serving.server import DEFAULT_ROLE, PolicyServer, PublishedPolicy, weights_version

__all__ = ["DEFAULT_ROLE", "PolicyServer", "PublishedPolicy", "weights_version"]
