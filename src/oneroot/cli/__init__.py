"""A person's words enter here, results and errors leave here: parse, call, render."""
