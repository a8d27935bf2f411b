"""The S3 face: buckets and objects over HTTP. Start reading at gateway.py, then objects.py and ingest.py."""
