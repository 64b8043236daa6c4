"""Writes families.json: what transformers renders with the templates in families/, each of our own in a family's format.

    python families.py

Needs transformers and Jinja2 from PyPI; those here are of 5.24.0 and 3.1.6. A case's variables are given as they stand; want is the prompt, error the
text of raise_exception, failed what else went wrong.
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


def call(name, arguments, id="abcdefgh1"):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Says <how> it is & \"will\" be. \u00e9\u4e2d", "parameters": {
        "type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 3, "maximum": 1.5}, "units": {"enum": ["C", "F"]}, "of": {"type": "array", "items": {"type": ["string", "null"]}}},
        "required": ["place"], "z": [], "a": {}}}},
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": None}},
]
CONVERSATIONS = [
    [m("user", "Hello")],
    [m("system", "Be brief."), m("user", "Hello")],
    [m("system", "  Be brief.\n"), m("user", " Hi \n"), m("assistant", " Hello! "), m("user", "What is\nRaft?")],
    [m("user", "a"), m("assistant", "<think>\nhm\n</think>\n\nb"), m("user", "c"), m("assistant", "<think>x</think>d")],
    [m("user", "a"), m("assistant", "b", reasoning_content="so\n"), m("user", "c"), m("assistant", "d", reasoning_content="\nthus")],
    [m("user", "{{ 7 * 7 }} {% if %} '\"\\ \u00e9 \u4e2d \U0001f600 <b>&amp;</b>", name="ann")],
    [m("user", ""), m("assistant", "")],
    [m("user", "a"), m("user", "b")],
    [m("assistant", "I begin.")],
    [m("system", "only")],
    [m("user", "Rain?"), m("assistant", None, tool_calls=[call("weather", {"place": "Bern", "days": "2"})]), m("tool", "{\"rain\": true}", tool_call_id="abcdefgh1"), m("assistant", "Yes."), m("user", "Sure?")],
    [m("user", "Rain?"), m("assistant", "", tool_calls=[call("weather", {"place": "Bern"}), call("now", {}, "abcdefgh2")]), m("tool", "wet", tool_call_id="abcdefgh1"), m("tool", "12:00", tool_call_id="abcdefgh2")],
    [m("user", [{"type": "text", "text": " in "}, {"type": "text", "text": "parts"}])],
    [m("tool", "{}", tool_call_id="x"), m("user", "x", name="bob")],
    [m("martian", "x")],
]
EXTRAS = [{}, {"tools": TOOLS}, {"enable_thinking": False, "date_string": "1 May 2030", "tools": TOOLS, "tools_in_user_message": False},
          {"documents": [{"text": "one"}, {"text": "two"}], "controls": {"citations": True}, "thinking": True, "builtin_tools": ["weather", "code_interpreter"], "reasoning_effort": "high"}]

cases = []
for name in sorted(os.listdir(os.path.join(HERE, "families"))):
    template = _compile_jinja_template(open(os.path.join(HERE, "families", name), newline="", encoding="utf-8").read())
    for messages in CONVERSATIONS:
        for extra in EXTRAS:
            for generate in (True, False) if not extra else (True,):
                case = {"template": name, "variables": {"tools": None, "documents": None, "messages": messages, "add_generation_prompt": generate, "bos_token": "<s>", "eos_token": "</s>", **extra}}
                try:
                    case["want"] = template.render(strftime_now=NOW.strftime, **case["variables"])
                except jinja2.exceptions.TemplateError as e:
                    case["error" if type(e) is jinja2.exceptions.TemplateError else "failed"] = str(e)
                except Exception as e:
                    case["failed"] = str(e)
                cases.append(case)
# Messages and tools are the same in many cases: they are written once.
shared = {}
for case in cases:
    for key in ("messages", "tools", "documents"):
        value = json.dumps(case["variables"][key], ensure_ascii=True)
        case["variables"][key] = shared.setdefault(value, len(shared))
with open(os.path.join(HERE, "families.json"), "w") as f:
    f.write("{\"shared\": [\n" + ",\n".join(shared) + "\n], \"cases\": [\n" + ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases) + "\n]}\n")
print(len(cases), "cases,", sum("error" in c for c in cases), "refused,", sum("failed" in c for c in cases), "failed")
