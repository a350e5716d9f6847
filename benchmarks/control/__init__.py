"""Does the constraint settle at ε? Noise suite, infeasible suite and known optima, with default settings."""
