"""The command line: it reads settings, opens the bank, calls graphs and shows what happened. Nothing imports it."""
