"""The look: Gradio's default theme in olive, with the reader's system fonts."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).parent.parent / "assets"
CSS = ASSETS / "style.css"

# The address is relative, so that the page also works below a path prefix.
HEAD = '<script type="module" src="lab/page.js"></script><meta name="color-scheme" content="light dark">'

OLIVE = gr.themes.Color(
    name="olive",
    c50="#f7f8ee",
    c100="#eceed6",
    c200="#dadfb0",
    c300="#c1ca82",
    c400="#a6b25a",
    c500="#87953d",
    c600="#66732b",
    c700="#515c24",
    c800="#424a21",
    c900="#383f1f",
    c950="#1d220d",
)
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    """The theme. No font or style is fetched from another host."""
    made: gr.themes.Base = gr.themes.Default(
        primary_hue=OLIVE,
        secondary_hue=OLIVE,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=SANS,
        font_mono=MONO,
    )
    return made.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_shadow="none",
        block_shadow_dark="none",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        checkbox_border_color_hover="*neutral_700",
        checkbox_border_color_hover_dark="*neutral_200",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )
