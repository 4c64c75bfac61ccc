"""Memento on PlanWorld: the frozen planner, the recipe `memento-q`, its arms and its evaluation."""
