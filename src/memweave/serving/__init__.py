"""Policy servers: where trained weights answer graphs."""

from memweave.serving.local_server import LocalServer
from memweave.serving.policy_folder import PolicyFolder, create_policy, load_policy_folder
from memweave.serving.seeding import call_seed
from memweave.serving.server import DEFAULT_ROLE, PolicyServer, PublishedPolicy, weights_version
from memweave.serving.vllm_chat import VLLMChatModel
from memweave.serving.vllm_server import VLLMServer

__all__ = [
    "DEFAULT_ROLE",
    "LocalServer",
    "PolicyFolder",
    "PolicyServer",
    "PublishedPolicy",
    "VLLMChatModel",
    "VLLMServer",
    "call_seed",
    "create_policy",
    "load_policy_folder",
    "weights_version",
]
