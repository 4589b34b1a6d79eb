"""About: what it is, how to cite it, its licence."""

from __future__ import annotations

import gradio as gr

from ssm_metarl.app.tabs.parts import Page
from ssm_metarl.version import __version__

ABOUT = f"""
### What you are looking at

**ssm-metarl** trains controllers that adapt. A *state space model* (a small recurrent network) is
*meta-trained* by MAML over a family of plants, so that one gradient step on how well it predicted
what its actions did turns it into the right controller for the plant at hand. No reward is needed
for that step, and a step that does not explain the data is undone.

*Recursive self-improvement* proposes changes of the model and of its training, and keeps one only
when a statistical test on fresh tasks has proven it.

### What it is not

It adapts to a changed *plant*, never to a changed *goal*. On the plants of this page a controller
from the textbook that reads what is hidden off the same data may do as well: `ssm-metarl worth`
says for a family whether learning to adapt is worth it.

### This page

Everything is computed on the server that shows it, by the functions that the command line
`ssm-metarl` calls; the animations are drawn by your browser from the trajectories' numbers.
Nothing is fetched from anywhere else. What you do here is yours alone: your browser keeps a
random token, the server keeps your runs under it, and forgets them some hours after you have
gone.

### Cite

```bibtex
@software{{ssm_metarl,
  author  = {{The ssm-metarl authors}},
  title   = {{ssm-metarl: a controller that re-tunes itself when the plant changes}},
  version = {{{__version__}}},
  license = {{MIT}}
}}
```

MIT licence.
"""


def build(page: Page) -> None:
    """Build the tab."""
    with gr.Tab("About", id="about"):
        gr.Markdown(ABOUT, elem_classes="ssm-prose")
