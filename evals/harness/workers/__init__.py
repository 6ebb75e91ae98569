"""One run on many devices: processes that compute blocks of questions, and the driver that writes their records."""
