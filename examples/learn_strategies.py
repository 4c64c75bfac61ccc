"""An agent that learns how to go about questions. Scripted model, no key: `python examples/learn_strategies.py`"""

from tempfile import TemporaryDirectory

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool

from memweave import Scope, create_graph_memory_agent, open_strategies
from memweave.agents.strategist import RULE_MATCH
from memweave.graphs.graph_memory_feedback import record_feedback
from memweave.memory_stores import StrategySettings
from memweave.testing.models import ScriptedChatModel
from memweave.trainers.edge_weights import Reinforce

CAPITALS = {"Norway": "Oslo", "Peru": "Lima", "Chad": "Ndjamena", "Cuba": "Havana"}


@tool
def search(country: str) -> str:
    """Look up the capital of a country."""
    return f"The capital of {country} is {CAPITALS[country]}."


def model(messages: list[BaseMessage]) -> AIMessage:
    """Guess, unless advised to search; in the place of a chat model such as `openai:gpt-4.1`."""
    if messages[-1].type == "tool":
        return AIMessage(messages[-1].text.split(" is ")[1].rstrip("."))
    advice = next((message.text for message in messages if message.name == "advice"), "")
    country = messages[-1].text.split()[-1].rstrip("?")
    if "consider searching" in advice or country == "Norway":  # which it does not know
        return AIMessage(
            "", tool_calls=[{"name": "search", "args": {"country": country}, "id": "1", "type": "tool_call"}]
        )
    return AIMessage("Oslo")


def ask(country: str) -> str:
    """Return a question."""
    return f"What is the capital of {country}?"


anna = Scope(user="anna")
settings = StrategySettings(match_threshold=RULE_MATCH)  # for strategies that rules make
with TemporaryDirectory() as folder, open_strategies(folder, settings=settings, embedding="hashing") as memory:
    agent = create_graph_memory_agent(ScriptedChatModel(model), [search], memory, scope=anna)

    output = agent.invoke({"messages": ask("Norway"), "ground_truth": "Oslo"})  # verified: the run goes into the graph
    print(f"Norway: {output['answer']}, reward {output['reward']}")
    output = agent.invoke({"messages": ask("Peru")})  # nobody has verified this answer yet
    print(f"Peru: {output['answer']}, advised {[each.summary for each in output['strategies']]}")

    learned = record_feedback(memory, output, 0.0, scope=anna)  # thumbs down: contrasted with what worked for Norway
    for change in learned.taught.changes if learned.taught else ():
        print(f"learned: {change.strategy.principles[0].text} ({change.strategy.confidence} confidence)")

    output = agent.invoke({"messages": ask("Chad")})
    shown = output["strategies"][0]
    print(f"Chad: {output['answer']}, advised {shown.summary!r}, relevance {shown.relevance:.2f}")

    # Weights need a gap: the same question with a strategy and without, which costs two more rollouts. They choose between
    # strategies: as long as there is one alone, its probability is 1 and nothing moves.
    trying = create_graph_memory_agent(
        ScriptedChatModel(model), [search], memory, scope=anna, learner=Reinforce(), pairs=1
    )
    output = trying.invoke({"messages": ask("Cuba"), "ground_truth": "Havana"})
    (row,) = output["learned"].updates
    update = row.update
    print(f"Cuba: {output['answer']}, with {update.reward_with}, without {update.reward_without}, gap {update.gap}")
