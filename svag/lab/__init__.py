"""The paper's benchmark protocol: problems x methods -> records -> analysis."""
