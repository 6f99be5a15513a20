"""Conversations and their token ids by transformers' apply_chat_template, for make_text.py.

The templates are the standard ones of the families: SmolLM2-Instruct (ChatML with a default system message), Llama 3 Instruct,
Qwen 2.5 Instruct and Qwen 3; GLM's is our statement of its format in Jinja.
"""
import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

CHATML = r"""{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = r"""{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

TOOLS_AFTER = (r'''"\n</tools>\n\nFor each function call, return a json object with function name and arguments within '''
               r'''<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": '''
               r'''<args-json-object>}\n</tool_call><|im_end|>\n"''')
TOOLS_BEFORE = (r'''# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function '''
                r'''signatures within <tools></tools> XML tags:\n<tools>" ''')

QWEN25 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n""" + TOOLS_BEFORE + r"""}}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- """ + TOOLS_AFTER + r""" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

QWEN3 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- """ + '"' + TOOLS_BEFORE + r"""}}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- """ + TOOLS_AFTER + r""" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

GLM = r"""[gMASK]<sop>
{%- if tools -%}
{{ '<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n' }}
{%- for tool in tools -%}
{{ tool | tojson + '\n' }}
{%- endfor -%}
{{ '</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value><arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>' }}
{%- endif -%}
{%- set ns = namespace(last_user_index=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last_user_index = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|user|>' + m.content }}
{%- elif m.role == 'system' -%}{{ '<|system|>' + m.content }}
{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '<|observation|>' }}{%- endif -%}
{{ '<tool_response>' + m.content + '</tool_response>' }}
{%- elif m.role == 'assistant' -%}
{{ '<|assistant|>' }}
{%- if m.reasoning_content and ((clear_thinking is defined and not clear_thinking) or loop.index0 > ns.last_user_index) -%}
{{ '<think>' + m.reasoning_content + '</think>' }}
{%- else -%}{{ '</think>' }}{%- endif -%}
{{ (m.content or '').strip() }}
{%- for tc in m.tool_calls or [] -%}
{{ '<tool_call>' + tc.function.name }}
{%- for k, v in tc.function.arguments.items() -%}
<arg_key>{{ k }}</arg_key><arg_value>{{ v if v is string else v | tojson }}</arg_value>
{%- endfor -%}
{{ '</tool_call>' }}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{{ '</think>' if (enable_thinking is defined and not enable_thinking) else '<think>' }}{%- endif -%}
"""

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city, in °C.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}, "exact": {"type": "boolean"}},
        "required": ["city"]}}},
    {"type": "function", "function": {"name": "calc", "description": "a \"calculator\"\t<b>", "parameters": {
        "type": "object", "properties": {"x": {"type": "number", "default": 1e-05}, "y": {"type": "array", "items": {"enum": [1.5, 2e16, -0.0, 100.0, 1e22, 0.1]}}}}}},
]


def call(name, **arguments):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


S = {"role": "system", "content": "You answer briefly."}
U1 = {"role": "user", "content": "What is the weather in Zürich?  \n"}
U2 = {"role": "user", "content": " 再见，谢谢！ 😀"}
A1 = {"role": "assistant", "content": "It is 3 °C and it's raining."}
A2 = {"role": "assistant", "content": "Bye!", "reasoning_content": "The user says goodbye.\nI answer."}
AT = {"role": "assistant", "content": "Let me look.", "reasoning_content": "I need the tool.", "tool_calls": [
    call("get_weather", city="Zürich", days=3, exact=True), call("calc", x=2.5, y=[1, None, "a\nb"])]}
AC = {"role": "assistant", "content": None, "tool_calls": [call("get_weather", city="Genève \"GE\"")]}
T1 = {"role": "tool", "content": "{\"celsius\": 3}"}
T2 = {"role": "tool", "content": "error: no such thing"}

PLAIN = [[U1], [S, U1], [U1, A1, U2], [S, U1, A1, U2, A1], [S, U1, A1, S, U2]]
AGENT = [[U1, AT, T1, T2], [S, U1, AC, T1, A1], [S, U1, AT, T1, T2, A2, U2], [U1, A2, U2, A2], [U1, AC, T1, AC, T2, A2], [U2, AT, T1, AT, T2, A2, U1, AC, T1]]


def case(tok, family, template, messages, tools, kwargs, generate):
    messages = [dict(m, content=m["content"] or "") if family == "qwen2" and m["content"] is None else m for m in messages]
    ids = tok.apply_chat_template(messages, tools=tools, chat_template=template, add_generation_prompt=generate, tokenize=True,
                                  return_dict=False, **kwargs)
    return {"family": family, "messages": messages, "tools": tools, "kwargs": kwargs, "generate": generate, "ids": ids}


def golden(docs):
    """docs: family name of the tokenizer -> its tokenizer.json. Returns what chat.json holds."""
    families = {"chatml": ("smollm", CHATML), "llama3": ("llama3", LLAMA3), "qwen2": ("qwen", QWEN25), "qwen3": ("qwen", QWEN3),
                "glm": ("glm", GLM)}
    out = {"templates": {}, "cases": []}
    for family, (tokenizer, template) in families.items():
        tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(docs[tokenizer])))
        if family == "llama3":
            tok.bos_token = "<|begin_of_text|>"
        out["templates"][family] = {"tokenizer": tokenizer, "text": template}
        for messages in PLAIN:
            for generate in (False, True):
                out["cases"].append(case(tok, family, template, messages, None, {}, generate))
        if family in ("chatml", "llama3"):
            continue
        for messages in AGENT:
            for tools in (None, TOOLS):
                variants = [{}] + ([{"enable_thinking": False}] if family != "qwen2" else []) + ([{"clear_thinking": False}] if family == "glm" else [])
                for kwargs in variants:
                    out["cases"].append(case(tok, family, template, messages, tools, kwargs, messages[-1]["role"] != "assistant"))
    return out
