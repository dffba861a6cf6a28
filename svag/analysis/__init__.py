"""Analyses records: tables, effects, sentences. Imports neither torch nor the code of runs."""
