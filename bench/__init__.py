"""Each face against the local disk on the same work in the same run. `python -m bench` prints one JSON object."""
