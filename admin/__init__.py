"""The operator's side: command line, processes, health. The only package that builds object graphs."""
