"""A page in the browser of this machine over the SDK: `tellapart app`, extra `app`.

`answers` makes the HTML, `page` shows it with Gradio. What is not about showing is left to `tellapart`.
"""
