"""Makes `harmony.json`: conversations, and what the chat template published with GPT-OSS makes of them.

    pip install jinja2==3.1.6 openai-harmony==0.0.8
    TIKTOKEN_ENCODINGS_BASE=<folder with o200k_base.tiktoken> python tests/golden/harmony.py <chat_template.jinja>

The template is `chat_template.jinja` of openai/gpt-oss-20b; it is not kept here, its SHA-256 is. It runs as transformers runs it:
the same sandbox, white space rules and `tojson`; the clock is the case's `date`. A case is

    row      a row of a data set, in one of the shapes that users have
    chat     parameters that are not the defaults
    text     what the template renders, without a generation prompt
    tokens   where openai-harmony renders the same text: its tokens

The template cannot read every shape: `openai()` rewrites a row as serving programs do before they call it (ShareGPT names, arguments
that are JSON in a string, `reasoning_content`). Where the library differs from the template there are no tokens; `DIFFERENT` says why.
"""

import datetime
import hashlib
import json
import pathlib
import sys

import openai_harmony as oh
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
TEMPLATE = "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146"
DATE = "2025-08-05"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gets the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City and country"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "integer", "default": 3},
            },
            "required": ["place"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}

# Every branch of the type rendering.
TYPES = {
    "zeta": {"type": "array", "items": {"type": "string"}, "description": "Order is kept: zeta before alpha"},
    "alpha": {"type": "array", "items": {"type": "number"}, "nullable": True},
    "integers": {"type": "array", "items": {"type": "integer"}},
    "flags": {"type": "array", "items": {"type": "boolean"}, "default": []},
    "anything": {"type": "array", "nullable": True},
    "matrix": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    "points": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}},
    "records": {
        "type": "array",
        "items": {"type": "object", "properties": {"name": {"type": "string"}, "address": {"type": "string"}}},
    },
    "pairs": {"type": "array", "items": {"type": ["object", "object"]}},
    "maybe": {"type": ["string", "null"], "default": None},
    "only": {"type": ["integer"]},
    "text": {"type": "string", "nullable": True, "default": "a \"b\" \u00e9 \u4e2d"},
    "colour": {"type": "string", "enum": ["red", "green"], "nullable": True},
    "level": {"type": "string", "enum": [1, 2.5, True, None]},
    "ratio": {"type": "number", "default": 1e-07},
    "big": {"type": "number", "default": 1e16},
    "plain": {"type": "number", "default": 0.0001},
    "yes": {"type": "boolean", "default": True},
    "free": {"type": "object"},
    "nested": {
        "type": "object",
        "properties": {
            "outer": {"type": "string", "description": "not shown"},
            "inner": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["b"]},
        },
        "required": ["outer"],
        "default": {"outer": "x", "list": [1, {"k": None}]},
    },
    "choice": {
        "oneOf": [
            {"type": "string", "description": "a name", "default": "n\u00e9e"},
            {"type": "integer"},
            {"type": "number", "default": 2},
        ],
        "default": "n",
    },
    "objects": {"oneOf": [{"type": "object"}, {"type": "string", "enum": ["none"]}]},
    "single": {"oneOf": [{"type": "object", "properties": {"k": {"type": "string"}}}]},
    "unknown": {"anyOf": [{"type": "string"}]},
    "empty": {},
}
KITCHEN = {
    "type": "function",
    "function": {
        "name": "kitchen",
        "description": "Everything.",
        "parameters": {"type": "object", "properties": TYPES, "required": ["zeta", "nested"]},
    },
}


def call(name, arguments, **more):
    return {"role": "assistant", "tool_calls": [{"type": "function", "id": "c", "function": {"name": name, "arguments": arguments}}], **more}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


CASES = {
    "one turn": {"messages": [say("user", "Hi"), say("assistant", "Hello!")]},
    "system only": {"messages": [say("system", "Be brief.")]},
    "user only": {"messages": [say("user", "Still waiting")]},
    "developer": {"messages": [say("developer", "Be\n\nbrief."), say("user", "Hi"), say("assistant", "Hello!")]},
    "system is empty": {"messages": [say("system", ""), say("user", "Hi"), say("assistant", "")]},
    "thinking of earlier turns is dropped": {
        "messages": [
            say("system", "Add."),
            say("user", "1 + 1", name="ann"),
            say("assistant", "2", thinking="one and one"),
            say("user", "2 + 2"),
            say("assistant", "4", thinking="two and two"),
        ]
    },
    "reasoning content": {"messages": [say("user", "Hi"), say("assistant", "Hello!", reasoning_content="A greeting.")]},
    "no thinking is null": {
        "messages": [
            say("user", "Hi", thinking=None, tool_calls=None),
            say("assistant", "Hello!", thinking=None, tool_calls=None, name=None),
        ]
    },
    "empty thinking": {"messages": [say("user", "Hi"), say("assistant", "Hello!", thinking="")]},
    "signs": {
        "messages": [
            say("user", "  caf\u00e9 \u4e2d\u6587 \U0001f600 <b>&amp;</b> \"quoted\" {{ 1 }} {% if %} <|half\n"),
            say("assistant", "\t\u00e9nd|> \\n "),
        ]
    },
    "a call that is open": {
        "messages": [say("user", "Weather?"), call("get_weather", {"place": "Oslo", "days": 2}, thinking="I need a tool.")],
        "tools": [WEATHER],
    },
    "a call, its result and the answer": {
        "messages": [
            say("system", "Use tools."),
            say("user", "Weather?"),
            call("get_weather", '{"unit": "celsius", "place": "Troms\u00f8"}', thinking="dropped", content=None),
            say("tool", '{"sky": "grey \u2601", "t": -3}', tool_call_id="c"),
            say("assistant", "Grey.", thinking="Now I know."),
        ],
        "tools": [WEATHER, NOW],
    },
    "two calls, one after the other": {
        "messages": [
            say("user", "Weather?"),
            call("get_weather", {"place": "a", "x": [1, 2.0, 1e-07, 1e22, None, True, {"q": "\"\u0001\u007f\u2028"}], "e": {}, "l": []}, content="kept"),
            say("tool", "line\none"),
            call("now", {}, thinking="kept too"),
            say("tool", {"hour": 12, "zone": [None, "UTC"]}),
        ],
        "tools": [WEATHER, NOW],
    },
    "an answer between calls": {
        "messages": [
            say("user", "a"),
            call("now", {}, thinking="dropped"),
            say("tool", "12"),
            say("assistant", "It is 12."),
            say("user", "b"),
            call("now", {}, thinking="kept"),
        ],
        "tools": [NOW],
    },
    "a call in the flat shape": {
        "messages": [
            say("user", "a"),
            {"role": "assistant", "tool_calls": [{"name": "now", "arguments": {"b": 1, "a": 2}, "content_type": "code"}]},
            say("tool", "12"),
        ],
    },
    "tools without instructions": {"messages": [say("user", "Hi"), say("assistant", "Hello!")], "tools": [NOW]},
    "tools as JSON in a string": {
        "messages": [say("developer", "Be brief."), say("user", "Hi"), say("assistant", "Hello!")],
        "tools": json.dumps([WEATHER]),
    },
    "every type": {"messages": [say("developer", "Cook."), say("user", "Hi"), say("assistant", "Hello!")], "tools": [KITCHEN, NOW]},
    "ShareGPT": {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello!"},
            {"from": "human", "value": "Bye"},
            {"from": "gpt", "value": "Bye!"},
        ]
    },
    "ShareGPT with a call": {
        "conversations": [
            {"from": "human", "value": "Time?"},
            {"from": "function_call", "value": '{"name": "now", "arguments": {"zone": "UTC"}}'},
            {"from": "observation", "value": "12:00"},
            {"from": "gpt", "value": "Noon."},
        ],
        "tools": [NOW],
    },
    "effort and date": {"messages": [say("user", "Hi"), say("assistant", "Hello!")]},
}
CHAT = {
    "ShareGPT": {"messages": "conversations"},
    "ShareGPT with a call": {"messages": "conversations"},
    "effort and date": {"date": "2026-01-31", "reasoning-effort": "high"},
}

# Where openai-harmony 0.0.8 renders another text than the template.
DIFFERENT = {
    "system only": "no blank lines behind instructions without tools",
    "developer": "no blank lines behind instructions without tools",
    "thinking of earlier turns is dropped": "no blank lines behind instructions without tools",
    "ShareGPT": "no blank lines behind instructions without tools",
    "a call that is open": "a call's recipient stands behind the channel",
    "a call, its result and the answer": "a call's recipient stands behind the channel; a result is not JSON",
    "two calls, one after the other": "as above",
    "an answer between calls": "as above",
    "a call in the flat shape": "as above",
    "ShareGPT with a call": "as above",
    "tools as JSON in a string": "a comma stands before a comment with a default, not behind it",
    "every type": "nested objects have lines of their own, and more types are told apart",
}

ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}


def openai(row):
    """The row's messages and tools in the shape that the template reads."""
    messages = []
    for message in row.get("messages") or row["conversations"]:
        message = {k: v for k, v in message.items() if v is not None}
        if message.get("from") == "function_call":
            message = {"role": "assistant", "tool_calls": [json.loads(message["value"])]}
        elif "from" in message:
            message = {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
        if "reasoning_content" in message:
            message["thinking"] = message.pop("reasoning_content")
        for one in message.get("tool_calls", []):
            function = one.get("function", one)
            if isinstance(function["arguments"], str):
                function = function | {"arguments": json.loads(function["arguments"])}
                one.update({"function": function} if "function" in one else function)
        messages.append(message)
    tools = row.get("tools")
    return messages, json.loads(tools) if isinstance(tools, str) else tools


def compiled(path, date):
    source = path.read_bytes()
    assert hashlib.sha256(source).hexdigest() == TEMPLATE, "another template than the one that the fixture was made from"

    def refuse(message):
        raise ValueError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
    return env.from_string(source.decode())


def reference(encoding, messages, tools, date, effort):
    """The library's tokens of the whole conversation, as for training."""
    system = (
        oh.SystemContent.new()
        .with_conversation_start_date(date)
        .with_reasoning_effort(oh.ReasoningEffort[effort.upper()])
    )
    out = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    first = messages[0]["content"] if messages[0]["role"] in ("system", "developer") else ""
    rest = messages[1:] if messages[0]["role"] in ("system", "developer") else messages
    if first or tools:
        developer = oh.DeveloperContent.new()
        if first:
            developer = developer.with_instructions(first)
        if tools:
            functions = [tool["function"] for tool in tools]
            # Without parameters the library prints what the template prints for none.
            schema = [f["parameters"] if f["parameters"]["properties"] else None for f in functions]
            tool = [oh.ToolDescription.new(f["name"], f["description"], s) for f, s in zip(functions, schema)]
            developer = developer.with_function_tools(tool)
        out.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    last = None
    for at, message in enumerate(rest):
        if message["role"] == "user":
            out.append(oh.Message.from_role_and_content(oh.Role.USER, message["content"]))
        elif message["role"] == "tool":
            author = oh.Author.new(oh.Role.TOOL, f"functions.{last}")
            result = message["content"] if isinstance(message["content"], str) else json.dumps(message["content"])
            out.append(oh.Message.from_author_and_content(author, result).with_recipient("assistant").with_channel("commentary"))
        else:
            later = any(m["role"] == "assistant" and "tool_calls" not in m for m in rest[at + 1 :])
            shown = not later if "tool_calls" in message else message is rest[-1]
            thought = message.get("thinking", message.get("content") if "tool_calls" in message else None)
            if thought is not None and shown:
                out.append(oh.Message.from_role_and_content(oh.Role.ASSISTANT, thought).with_channel("analysis"))
            if "tool_calls" in message:
                function = message["tool_calls"][0].get("function", message["tool_calls"][0])
                last = function["name"]
                body = json.dumps(function["arguments"], ensure_ascii=False)
                made = oh.Message.from_role_and_content(oh.Role.ASSISTANT, body).with_channel("commentary")
                out.append(made.with_recipient(f"functions.{last}").with_content_type("json"))
            else:
                out.append(oh.Message.from_role_and_content(oh.Role.ASSISTANT, message["content"]).with_channel("final"))
    # Which thoughts are shown is the template's rule, applied above: the library drops all of them once an answer follows.
    keep = oh.RenderConversationConfig(auto_drop_analysis=False)
    return encoding.render_conversation_for_training(oh.Conversation.from_messages(out), config=keep)


def main():
    path = pathlib.Path(sys.argv[1])
    encoding = oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)
    cases = []
    for name, row in CASES.items():
        chat = CHAT.get(name, {})
        date, effort = chat.get("date", DATE), chat.get("reasoning-effort", "medium")
        messages, tools = openai(json.loads(json.dumps(row)))
        text = compiled(path, date).render(messages=messages, tools=tools, reasoning_effort=effort, add_generation_prompt=False)
        tokens = reference(encoding, messages, tools, date, effort)
        same = encoding.decode(tokens) == text
        assert same != (name in DIFFERENT), f"{name}: the library renders\n{encoding.decode(tokens)}\nthe template\n{text}"
        cases.append({"name": name, "row": row, "chat": chat, "text": text} | ({"tokens": tokens} if same else {}))
    fixture = {"template_sha256": TEMPLATE, "cases": cases}
    (HERE / "harmony.json").write_text(json.dumps(fixture, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


main()
