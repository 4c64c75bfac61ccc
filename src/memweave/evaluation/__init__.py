"""Evaluations: retrieval recall and question answering, over the real memory bank and graphs."""
