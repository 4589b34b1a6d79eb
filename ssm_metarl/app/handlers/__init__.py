"""What the app does for a visitor: plain functions on dataclasses, without Gradio.

One module a tab: `models` (0), `training` (1), `adapting` and `live` (2), `improving` and `daemon`
(3), `comparing` (4). Each takes what a visitor entered, checks it, calls what the command line
calls, and returns what is to be shown.
"""
