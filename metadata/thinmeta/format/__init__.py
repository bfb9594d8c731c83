"""The on-disk format: bytes to frozen values and back. Pure; imports nothing but `errors`.

Each module declares its structures with `construct` and asserts their sizes at import. Code that
is too hot for that reads the same bytes through `memoryview.cast`, at offsets taken from the
declarations; a test holds both readings together.
"""
