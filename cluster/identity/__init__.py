"""Who is who in a cluster: keys, certificates, join tokens, HELLO, grants, revocation, rotation.

Everything here but `keyfiles` is pure: bytes and times in, values or Refused out.

    keys > signed > statements > hello > admission        certificates, tokens, access, trust, registry beside them
"""
