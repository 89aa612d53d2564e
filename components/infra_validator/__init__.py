"""InfraValidator: serves the candidate model and compares the server's responses with the evaluation, before a push."""
