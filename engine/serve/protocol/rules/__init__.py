"""What a value of a request may be. A rule reads a JSON value, and describes itself as a JSON schema.

Both accept the same values, so that /openapi.json is true.
"""
