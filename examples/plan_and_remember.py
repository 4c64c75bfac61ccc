"""A planner and an executor that remember which plans worked. Scripted models, no key: `python examples/plan_and_remember.py`"""

from tempfile import TemporaryDirectory

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool

from memweave import Scope, create_memento_agent, open_cases, record_feedback
from memweave.testing.models import ScriptedChatModel

STOCK = {"tea": 12, "coffee": 30}


@tool
def look_up(item: str) -> int:
    """Look up how many of an item are in stock."""
    return STOCK[item]


def planner(messages: list[BaseMessage]) -> str:
    """Plan, and answer with the result; in the place of a chat model such as `openai:gpt-4.1`."""
    if "result:" in messages[-1].text:
        return f"FINAL ANSWER: {messages[-1].text.split('result: ')[1]}"
    return f'{{"plan": [{{"id": 1, "description": "look up {messages[1].text.split()[2]}"}}]}}'


def executor(messages: list[BaseMessage]) -> AIMessage:
    """Call the tool, then report."""
    if messages[-1].type == "tool":
        return AIMessage(messages[-1].text)
    item = messages[-1].text.split()[-1]
    return AIMessage("", tool_calls=[{"name": "look_up", "args": {"item": item}, "id": "1", "type": "tool_call"}])


anna = Scope(user="anna")
with TemporaryDirectory() as folder, open_cases(folder, embedding="hashing") as cases:
    agent = create_memento_agent(ScriptedChatModel(planner), ScriptedChatModel(executor), [look_up], cases, scope=anna)
    output = agent.invoke({"messages": "How many tea ?", "ground_truth": "12"})  # verified: kept as a case
    print(f"{output['answer']}, reward {output['reward']}, kept as case: {output['case_id'] is not None}")

    output = agent.invoke({"messages": "How many coffee ?"})  # shown the case; nobody has verified the answer yet
    print(f"{output['answer']}, shown {[case.task for case in output['record'].cases]}, reward {output['reward']}")
    record_feedback(cases, output, 1.0, scope=anna)  # thumbs up
    for case in cases.cases(scope=anna):
        print(f"{case.task} -> {case.plan} (reward {case.reward})")
