"""Give a chat a memory: no server, no key, no model. `python examples/embed_agent.py`"""

from tempfile import TemporaryDirectory

from memweave import Scope, create_memory_r1_agent, open_bank

anna = Scope(user="anna")
# A folder of your own keeps the memories; leave `embedding` out to get MiniLM where it is installed.
with TemporaryDirectory() as folder, open_bank(folder, embedding="hashing") as bank:
    agent = create_memory_r1_agent(bank, scope=anna)  # model="openai:gpt-4.1-mini" lets a model do it all
    for text in ("I live in Lisbon.", "My cat is called Tom.", "I moved to Porto.", "Where do I live?"):
        output = agent.invoke({"messages": text})
        print(f"anna   {text}\nagent  {output['messages'][-1].text}")
        for op in output["operations"]:
            print(f"       {op.kind}: {op.reason}")

    moved = bank.log(scope=anna)[-1]
    bank.undo(moved.id, scope=anna, actor="anna", reason="I stayed after all")
    print(f"undone: {moved.kind}\nagent  {agent.invoke({'messages': 'Where do I live?'})['messages'][-1].text}")
