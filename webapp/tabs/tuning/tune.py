"""Tune: many runs from one form: the values of an option compared, or ways to quantize."""

from __future__ import annotations

import gradio as gr

from webapp.tabs import lab
from webapp.tabs.tuning import scorecard, sweep
from webapp.ui import parts

ABOUT = """<p class="lab-note">Model, data and all other options are those of the form on the Lab tab. What
the runs have in common is done once; each has its log and can be canceled by itself.</p>"""


def build(tab: gr.Tab, made: lab.Lab) -> None:
    """Lay out the tab, for the form of the Lab tab."""
    parts.fixed(ABOUT)
    sweep.build(made.inputs, lab.filled, made.run, made.you)
    scorecard.build(tab, made.inputs, lab.to_score, made.you)
