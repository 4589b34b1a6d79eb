"""The page: tabs, what is restored when it is loaded, how a handler's refusal is shown.

Place in the flow: stage 10, over the tabs. A tab builds its components and says which of them
belong to the visitor and what their values are; loading the page, and choosing another model, sets
them all.
"""

from __future__ import annotations

from typing import Any, cast

import gradio as gr

from ssm_metarl.app.markup import STATIC, render
from ssm_metarl.app.server import Server
from ssm_metarl.app.tabs import adaptation, comparison, improvement, meta_training, models
from ssm_metarl.app.tabs.parts import QUIET, Page, shown, text
from ssm_metarl.version import __version__

SCRIPTS = ("sketch.js", "player.js", "live.js", "chart.js")
STORAGE_KEY = "ssm-metarl-visitor"
BUTTONS = {
    "button_primary_background_fill": "#0072b2",
    "button_primary_background_fill_hover": "#005e94",
    "button_primary_background_fill_dark": "#56b4e9",
    "button_primary_background_fill_hover_dark": "#7cc6f0",
    "button_primary_text_color_dark": "#08131f",
    "slider_color": "#0072b2",
    "slider_color_dark": "#56b4e9",
    "checkbox_background_color_selected": "#0072b2",
}


def build(server: Server) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="ssm-metarl: watch an agent adapt", analytics_enabled=False) as blocks:
        # The secret only garbles what the browser keeps; the token itself is what protects.
        token = gr.BrowserState("", storage_key=STORAGE_KEY, secret=STORAGE_KEY)
        text(value=render("header", version=__version__))
        with gr.Tabs(selected=models.TAB) as tabs:
            page = Page(server, token, tabs)
            for tab in (models, meta_training, adaptation, improvement, comparison):
                tab.build(page)
            with gr.Tab("About", id="about"):
                about = (STATIC / "about.md").read_text().replace("VERSION", __version__)
                gr.Markdown(about, elem_classes="ssm-prose")

        @shown
        def restore(given: Any) -> list[Any]:
            visitor = server.visitors.arrive(given)
            return [visitor.token, *(v for values in page.values for v in values(visitor))]

        restoring: dict[str, Any] = {"inputs": [token], "outputs": [token, *page.components]}
        restoring |= QUIET
        blocks.load(restore, **restoring)
        for chosen in page.model_chosen:
            chosen.success(restore, **restoring)
    return cast(gr.Blocks, blocks)


def page_options() -> dict[str, Any]:
    """Looks and scripts, for `gr.Blocks.launch`: all from this package, nothing from elsewhere."""
    scripts = "\n".join((STATIC / name).read_text() for name in SCRIPTS)
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
    theme = gr.themes.Base(
        primary_hue="blue",
        secondary_hue="sky",
        neutral_hue="slate",
        font=sans,
        font_mono=mono,
        radius_size=gr.themes.sizes.radius_md,
    ).set(**BUTTONS)
    return {
        "theme": theme,
        "css": (STATIC / "style.css").read_text(),
        "head": f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<script>{scripts}</script>",
    }
