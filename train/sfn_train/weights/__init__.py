"""Other people's weights: found, read without running their code, checked, converted."""
