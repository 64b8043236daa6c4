"""Writes golden.json: what Jinja2, set up as transformers sets it up, renders with the templates of this folder.

    python golden.py

Needs transformers and Jinja2 from PyPI.
"""

import datetime
import json
import os

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = datetime.datetime(2026, 11, 3, 9, 5, 7)


def m(role, content, **more):
    return {"role": role, "content": content, **more}


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Says <how> it is & \"will\" be. \u00e9\u4e2d", "parameters": {
    "type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 3, "maximum": 1.5}}, "required": ["place"], "z": [], "a": {}}}}]
CONVERSATIONS = [
    [m("user", "Hello")],
    [m("system", "Be brief."), m("user", "Hello")],
    [m("system", "  Be brief.\n"), m("user", " Hi \n"), m("assistant", " Hello! "), m("user", "What is\nRaft?")],
    [m("user", "a"), m("assistant", "<think>\nhm\n</think>\n\nb"), m("user", "c"), m("assistant", "<think>x</think>d")],
    [m("user", "<|im_end|> {{ 7 * 7 }} {% if %} '\"\\ \u00e9 \u4e2d \U0001f600 <b>&amp;</b>", name="ann")],
    [m("user", ""), m("assistant", "")],
    [m("user", "a"), m("user", "b")],
    [m("assistant", "I begin.")],
    [m("system", "only")],
    [m("tool", "{}"), m("user", "x", name="bob")],
]
EXTRAS = [{}, {"tools": TOOLS}, {"enable_thinking": False, "date_string": "1 May 2030"}, {"documents": [{"title": "t"}], "enable_thinking": True}]


def main():
    cases = []
    for name in sorted(n for n in os.listdir(HERE) if n.endswith(".jinja")):
        template = _compile_jinja_template(open(os.path.join(HERE, name), newline="").read())
        for messages in CONVERSATIONS:
            for extra in EXTRAS:
                for generate in (True, False):
                    case = {"template": name, "messages": messages, "extra": extra, "generate": generate}
                    try:
                        case["want"] = template.render(messages=messages, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>", strftime_now=NOW.strftime,
                                                       **{"tools": None, "documents": None, **extra})
                    except jinja2.exceptions.TemplateError as e:
                        case["error"] = str(e)
                    cases.append(case)
    with open(os.path.join(HERE, "golden.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases) + "\n]\n")
    print(len(cases), "cases,", sum("error" in c for c in cases), "of them errors")


if __name__ == "__main__":
    main()
