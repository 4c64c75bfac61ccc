"""Graph memory in a second domain: missions of BabyAI, played by a script that reads advice."""
