"""The verbs of the command line, one file each: causes, messages and exit statuses.

Most run twice: on a running pool, through its daemon, and on a stopped one, opened by the command.
"""
