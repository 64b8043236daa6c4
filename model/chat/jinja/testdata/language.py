"""Writes language.json: what Jinja2, set up as transformers sets it up, renders for each line of language.txt.

    python language.py

Needs transformers and Jinja2 from PyPI; those here are of 5.24.0 and 3.1.6. In language.txt "\\n" stands for a newline in the template.
"""

import datetime
import json
import os

from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = datetime.datetime(2026, 11, 3, 9, 5, 7)
with open(os.path.join(HERE, "variables.json")) as f:
    VARIABLES = json.load(f)

cases = []
for line in open(os.path.join(HERE, "language.txt"), encoding="utf-8"):
    line = line.rstrip("\n")
    if not line or line.startswith("### "):
        continue
    case = {"template": line.replace("\\n", "\n")}
    try:
        case["want"] = _compile_jinja_template(case["template"]).render(strftime_now=NOW.strftime, **VARIABLES)
    except Exception as e:  # what is wrong is worded in another way by each interpreter
        case["error"] = f"{type(e).__name__}: {e}"
    cases.append(case)
with open(os.path.join(HERE, "language.json"), "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases) + "\n]\n")
print(len(cases), "cases,", sum("error" in c for c in cases), "of them errors")
