"""The sampling program (installed as `maskgen.sample`)."""
