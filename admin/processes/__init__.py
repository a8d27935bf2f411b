"""One composition root per process: here, and only here, object graphs are built."""
