"""Chat templates, each with a feature of Jinja that templates of real models use."""

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def loop(turn: str, before: str = "", end: str = END) -> str:
    return f"{before}{{% for m in messages %}}{turn}{{% endfor %}}{end}"


def said(expression: str) -> str:
    """A turn whose words an expression writes."""
    return loop("<|im_start|>{{ m.role }}\n{{ " + expression + " }}<|im_end|>\n")


def said_lower() -> str:
    return "{{ m.role }}: {{ m.content | lower }}\n"


FEATURES = {
    "plain": loop(TURN),
    "concatenation": loop("{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"),
    "tilde": loop("{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>\n' }}"),
    "format": loop("{{ '<|%s|>%s<|end|>\n' | format(m.role, m.content) }}"),
    "percent": loop("{{ '<|%s|>' % m.role }}{{ m.content }}\n"),
    "str-format": loop("{{ '<|{}|>'.format(m.role) }}{{ m.content }}\n"),
    "upper-method": loop("<|{{ m.role.upper() }}|>{{ m.content }}\n"),
    "upper-filter": loop("<|{{ m.role | upper }}|>{{ m.content }}\n"),
    "title": loop("{{ m.role.title() }}: {{ m.content }}\n"),
    "capitalize": loop("{{ m.role | capitalize }}: {{ m.content }}\n"),
    "trim": said("m.content | trim"),
    "strip": said("m.content.strip()"),
    "lstrip": said("m.content.lstrip()"),
    "rstrip": said("m.content.rstrip()"),
    "strip-newlines": said("m.content.strip('\n')"),
    "replace-method": said("m.content.replace('<|im_end|>', '')"),
    "replace-filter": said("m.content | replace('<|im_end|>', '')"),
    "split": said("m.content.split('</think>')[-1]"),
    "lower": said("m.content.lower()"),
    "content-upper": said("m.content | upper"),
    "slice": said("m.content[:20]"),
    "length": said("m.content ~ ' (' ~ (m.content | length) ~ ')'"),
    "in": said("m.content if '/no_think' not in m.content else 'quiet: ' ~ m.content"),
    "startswith": said("m.content if not m.content.startswith('<tool') else 'tool: ' ~ m.content"),
    "tojson": said("m.content | tojson"),
    "string-test": said("m.content if m.content is string else m.content[0].text"),
    "default": said("m.content | default('none', true)"),
    "namespace": loop(
        "{% set ns.count = ns.count + 1 %}[{{ ns.count }}]" + TURN, "{% set ns = namespace(count=0) %}"
    ),
    "set-block": loop("{% set text %}{{ m.role }}: {{ m.content }}{% endset %}{{ text }}\n"),
    "macro": loop(
        "{{ turn(m.role, m.content) }}",
        "{% macro turn(role, text) %}<|{{ role }}|>{{ text }}<|end|>\n{% endmacro %}",
    ),
    "filter-block": loop("{% filter upper %}{{ m.role }}{% endfilter %}: {{ m.content }}\n"),
    "loop-index": loop("{{ loop.index }}/{{ loop.length }}" + TURN),
    "loop-first-last": loop("{% if loop.first %}<s>{% endif %}" + TURN + "{% if loop.last %}\n{% endif %}"),
    "loop-controls": loop("{% if m.role == 'tool' %}{% continue %}{% endif %}" + TURN),
    "selectattr": loop(TURN, "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}\n"),
    "map-join": loop(TURN, "{{ messages | map(attribute='role') | join(',') }}\n"),
    "slicing-messages": (
        "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "{% for m in rest %}" + TURN + "{% endfor %}" + END
    ),
    "reverse": loop(TURN, "{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}\n"),
    "items": loop(TURN, "{% for key, value in {'a': 1, 'b': 2}.items() %}{{ key }}={{ value }};{% endfor %}"),
    "dict-get": loop("<|{{ m.get('role', 'user') }}|>{{ m.get('content') }}\n"),
    "ternary-chain": loop(
        "{{ {'user': 'U', 'assistant': 'A'}[m.role] if m.role in ['user'] else 'S' }}: {{ m.content }}\n"
    ),
    "strftime": loop(TURN, "Today Date: {{ strftime_now('%d %b %Y') }}\n"),
    "strftime-defined": loop(
        TURN, "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% else %}2024{% endif %}\n"
    ),
    "raise": loop("{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURN),
    "alternate": loop(
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
        + TURN
    ),
    "whitespace-control": (
        "{%- for m in messages -%}\n  {{- '<|' + m.role + '|>' -}}\n  {{- m.content }}\n{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
    ),
    "comment": loop("{# a note #}" + TURN),
    "undefined": loop(TURN, "{% if tools %}tools{% endif %}{% if not nothing is defined %}-{% endif %}"),
    "recursive-sum": loop(TURN, "{{ [1, 2, 3] | sum }}{{ (7 // 2) ** 2 % 5 }}\n"),
    "generation": loop("<|{{ m.role }}|>{% generation %}{{ m.content | lower }}{% endgeneration %}\n"),
    "no-bos": loop(said_lower(), "{{ bos_token }}{{ pad_token }}"),
    "generation-space": loop(TURN, end="{% if add_generation_prompt %}ASSISTANT: {% endif %}"),
}
