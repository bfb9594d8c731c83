"""What a machine has and lacks for thinpoold, what for, and the command that mends it.

`finding` is what a check says, `machine` is what it looks at; `programs`, `kernel`, `limits` and
`filesystem` are the checks, `examination` all of them in order. A check never changes the machine,
but for files of its own that it makes and removes.
"""
