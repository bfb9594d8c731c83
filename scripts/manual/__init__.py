"""The manual pages, made from the code: commands' help and options, the control socket's methods.

`roff` writes pages, `markdown` turns a small Markdown into them, `commands` turns click's commands,
and `pages` knows which pages there are. What the code cannot say lies in `prose`, a Markdown file a
page; its sections are put behind those of the same name.
"""
