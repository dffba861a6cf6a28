"""Forms of the contributions c_k of B examples to a parameter's gradient."""
