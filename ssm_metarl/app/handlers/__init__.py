"""What the app does for a visitor: plain functions on dataclasses, without Gradio.

One module a tab: `models` (0), `training` (1), `adapting` and `live` (2), `improving` and `daemon`
(3), `comparing` (4). Each takes what a visitor entered, checks it, calls what the command line
calls, and returns what is to be shown. A field that holds what it may not is a `FieldError`, a full
queue is `Busy`, any other refusal a ValueError; nothing has changed then (`tabs.parts.shown`).
"""
