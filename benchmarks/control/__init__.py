"""Does the constraint settle at ε? Noise suite and infeasible suite, with default settings."""
