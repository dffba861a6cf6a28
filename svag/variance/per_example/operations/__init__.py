"""Operations that take a parameter: how each example contributes, a file each kind."""
