"""Records and analyses in the forms that other programs read: CSV, Parquet, LaTeX, JSON."""
