"""Graph memory on FSM-QA: the base policies, their teacher, and the recipes on top of them."""
