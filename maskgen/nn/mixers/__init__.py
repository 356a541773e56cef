"""Token mixers: layers that exchange information between the tokens of a row."""
