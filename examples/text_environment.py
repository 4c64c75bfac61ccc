"""Let an agent play a text environment of your own: no server, no key, no package. `python examples/text_environment.py`"""

import random
import re

from langchain.agents import create_agent
from langchain_core.messages import AIMessage

from memweave.recipes.agent_player import AgentPlayer
from memweave.recipes.playing import RandomPlayer, evaluate, play
from memweave.testing.models import ScriptedChatModel
from memweave.worlds.text_env import GymTextEnv


class Vault:
    """A door with two buttons to press, and a note that says which, with gymnasium's interface."""

    def reset(self, *, seed):
        """Return an observation and further information."""
        self.code, self.pressed = random.Random(seed).sample(["red", "green", "blue"], 2), []
        return "You stand at the door of a vault. There is a note.", {}

    def step(self, action):
        """Return observation, reward, whether the end was reached, whether it was cut short, and further information."""
        if action == "read":
            return f"It says: {self.code[0]} before {self.code[1]}.", 0.0, False, False, {}
        self.pressed.append(action)
        if self.pressed == self.code:
            return "The door opens.", 1.0, True, False, {}
        wrong = self.pressed != self.code[: len(self.pressed)]
        return "An alarm rings." if wrong else "It clicks.", 0.0, wrong, False, {}


def vault(level="vault"):
    """Return the environment in words: its observations are words already."""
    actions = {"read the note": "read"} | {f"press {color}": color for color in ("red", "green", "blue")}
    return GymTextEnv(Vault(), actions, lambda seen, env: seen, task=lambda seen, env: "Open the door.", max_steps=8)


def think(messages):
    """Stand in for a model: read the note, then press what it says. `chat_model("openai:gpt-4.1-mini")` is a real one."""
    seen = "\n".join(message.text for message in messages)
    code = re.search(r"It says: (\w+) before (\w+)", seen)
    action = f"press {code[1 + seen.count('It clicks.')]}" if code else "read the note"
    call = {"name": "act", "args": {"action": action}, "id": str(len(messages))}
    return "Done." if "The episode is over" in seen else AIMessage("", tool_calls=[call])


agent = AgentPlayer(lambda tools: create_agent(ScriptedChatModel(think), tools))  # any graph over `messages`
episode = play(vault(), agent, seed=1)
print(episode.first)
for move in episode.moves:
    print(f"> {move.action}\n{move.step.text}")
print(f"{episode.status}, reward {episode.reward:g} in {episode.steps} steps")

for name, player in {"agent": agent, "random": RandomPlayer()}.items():
    (episodes,) = evaluate(vault, [player], ["vault"], episodes=50)["vault"]
    print(f"{name}: {sum(each.won for each in episodes)} of {len(episodes)} doors opened")
