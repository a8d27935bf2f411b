"""How requests travel: memory (one process), Unix stream (one host); QUIC joins behind the same interface.

A transport knows frames, not messages: bodies are opaque bytes, handlers decode them. One conformance suite
(tests/conformance) is passed by all.
"""
