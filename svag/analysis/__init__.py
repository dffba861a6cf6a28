"""Records -> tables, effects, sentences. Knows neither torch nor how runs are made."""
