"""Two apps over the SDK: a page in the browser of this machine, and a desktop window.

`answers` and `page` are `tellapart app` (extra `app`, Gradio). `worker`, `session` and `window` are
`tellapart desktop` (extra `desktop`, PySide6). What is not about showing is left to `tellapart`.
"""
