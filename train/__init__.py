"""The training program (installed as `maskgen.train`)."""
