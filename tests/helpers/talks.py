"""Conversations of several turns, and chat templates in the styles of well-known models'."""

from __future__ import annotations

from typing import Any

from pipeline.inputs.prompts.templates import Chat
from tests.helpers import zoo

# Phi-3.5's own ends a conversation in a token that it does not write between turns.
PHI35 = zoo.PHI3.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
# As templates of models that reason do: what was thought is left out of all answers but the last.
FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1]"
    " if m.role == 'assistant' and not loop.last else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
STYLES = {
    "qwen2.5": zoo.CHATML, "llama2": zoo.LLAMA2, "llama3": zoo.LLAMA3, "phi3.5": PHI35, "gemma": zoo.GEMMA,
    "mistral": zoo.LLAMA2, "forgets": FORGETS, "strict": STRICT,
}  # fmt: skip
ASKED = "Is it far?"


def chat(style: str) -> Chat:
    return Chat(STYLES[style], {"bos_token": "<s>", "eos_token": "</s>"})


def talk(*texts: str) -> dict[str, Any]:
    """A row of a user and an assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]}


TALK = talk("What is the best town?", "Rome.", ASKED, "No.", "  I like it ", "Then go there.")
USER, ANSWER = talk("What is the best town?", "Rome.")["messages"]
