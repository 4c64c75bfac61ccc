"""Give an agent that you have already a memory, in one line. No server, no key: a script plays the model here."""

import re
from tempfile import TemporaryDirectory

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from memweave import MemoryMiddleware, Scope, open_bank
from memweave.testing.models import ScriptedChatModel


def call(name: str, reason: str, **arguments: object) -> AIMessage:
    """Return a reply that calls a tool and says why."""
    return AIMessage(reason, tool_calls=[{"name": name, "args": arguments, "id": f"call-{name}", "type": "tool_call"}])


def play(messages: list[BaseMessage]) -> AIMessage | str:
    """Reply as a model might; what it knows stands in the messages that it is shown."""
    if isinstance(messages[-1], ToolMessage):
        return "I will remember that."
    said = messages[-1].text
    recalled = re.search(r"lives in (\w+) \[(\d+)\]", "\n".join(message.text for message in messages[:-1]))
    if said.startswith("I live in"):
        return call("Add_memory", "She says where she lives.", content=f"Anna lives in {said.split()[-1].strip('.')}")
    if said.startswith("I moved to") and recalled:
        text = f"Anna lives in {said.split()[-1].strip('.')}"
        return call("Update_memory", "She moved.", memory_id=recalled[2], content=text)
    return f"In {recalled[1]}." if recalled else "I do not know."


anna = Scope(user="anna")
# A folder of your own keeps the memories; leave `embedding` out to get MiniLM where it is installed.
with TemporaryDirectory() as folder, open_bank(folder, embedding="hashing") as bank:
    agent = create_agent(
        ScriptedChatModel(play),  # "openai:gpt-4.1-mini"
        tools=[],
        middleware=[MemoryMiddleware(bank, scope=anna)],
        checkpointer=InMemorySaver(),
    )
    chats = (
        ("monday", "I live in Ghent."),
        ("tuesday", "Where does Anna live?"),
        ("tuesday", "I moved to Utrecht."),
        ("friday", "Where does Anna live now?"),
    )
    for thread, text in chats:
        output = agent.invoke({"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": thread}})
        print(f"{thread:8}{text}\n        -> {output['messages'][-1].text}")

    print("\nThe bank holds:")
    for memory in bank.memories(scope=anna):
        print(f"  {memory.text}")
    print("because:")
    for op in bank.log(scope=anna):
        print(f"  {op.kind:7}{op.reason} (by {op.actor}) -> {op.after.text if op.after else ''}")

    bank.undo(op.id, scope=anna, actor="anna", reason="I stayed after all")
    output = agent.invoke({"messages": "Where does Anna live?"}, {"configurable": {"thread_id": "sunday"}})
    print(f"After the undo: {output['messages'][-1].text}")
